"""The sources of sentence pairs: each split read anew at every pass, in bounded memory."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import unescape
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fwlight.types import DataError
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch, hash_of
from tasks.io.textfiles import existing_file, read_pieces
from tasks.text.cldr import phrase_pairs

SPLITS = ("train", "valid", "test")
SOURCES = ("cldr", "multi30k", "wmt14", "files")
LANGUAGES = ("en", "de")

Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Split:
    """Where the pairs of a split come from."""

    pairs: Callable[[], Pairs]
    """One call is one pass; where that is allowed, one side of a pair may be ""."""
    key: str
    """A hash of all that the pairs depend on."""
    name: str = ""
    """Of its files, if it is read from some."""


def open_pairs(
    data: str,
    *,
    source_lang: str,
    target_lang: str,
    path: str | Path | None = None,
    given: dict[str, str | Path | None],
    drop_blank: bool = False,
    seed: int,
    only: str | None = None,
) -> dict[str, Split]:
    """Return the three splits of a source, or `only` one; what is to be downloaded is.

    - `cldr`: see `tasks.text.cldr`.
    - `multi30k`: captions of photographs (Elliott et al. 2016), English and German, task 1:
      29,000 pairs, 1,014 of validation and test_2016_flickr; in the folder `path` or downloaded.
    - `wmt14`: English and German of the WMT 2014 news task: Europarl 7, Common Crawl and News
      Commentary 9, about 4.5 million pairs; newstest2013 and newstest2014. Training pairs may have
      a blank side.
    - `files`: for each split of `given` the files <it>.<source_lang> and <it>.<target_lang>, UTF-8,
      plain or with `.gz` at the end, line by line translations of each other.

    Args:
        data: One of these.
        source_lang: Language to translate from.
        target_lang: Language to translate to.
        path: Of `multi30k`.
        given: For each split the files' name without the language, for `files`.
        drop_blank: Of `files`: whether pairs may have a blank side, for the reader to leave out.
        seed: Of what is drawn.
        only: This split; of any source it may be two files that `given` names, as of `files`.

    Raises:
        DataError: A file is missing or cannot be used.
        StorageError: Something cannot be downloaded.
    """
    languages = (source_lang, target_lang)
    wanted = SPLITS if only is None else (only,)
    if only is not None and given[only]:
        return {only: _files(_both(f"{given[only]}", languages), allow_blank=drop_blank)}
    if data == "cldr":
        key = f"cldr 1 {languages} {seed} babel {version('babel')}"
        hashed = hashlib.sha256(key.encode()).hexdigest()
        phrases = partial(phrase_pairs, *languages, seed=seed)
        return {
            split: Split(partial(_phrases, phrases, split), f"{split} {hashed}") for split in wanted
        }
    if data == "files":
        files = {split: _both(f"{given[split]}", languages) for split in wanted}
        return {split: _files(files[split], allow_blank=drop_blank) for split in wanted}
    if data == "multi30k":
        return {split: _files(_multi30k(split, languages, path)) for split in wanted}
    return {split: found for split, found in _wmt14(languages).items() if split in wanted}


def check_source(
    data: str,
    *,
    source_lang: str,
    target_lang: str,
    path: str | Path | None,
    given: dict[str, str | Path | None],
    drop_blank: bool,
) -> None:
    """Check what can be checked before anything is read or downloaded.

    Raises:
        DataError: An unknown source, or paths that it lacks or does not read.
    """
    if data not in SOURCES:
        raise DataError(f"task.data={data} is unknown; choose one of {', '.join(SOURCES)}")
    if source_lang == target_lang:
        raise DataError(f"task.source_lang and task.target_lang are both {source_lang}")
    if data in ("multi30k", "wmt14"):
        for lang in (source_lang, target_lang):
            if lang not in LANGUAGES:
                raise DataError(f"task.data={data} is read in en and de only, not in {lang}")
    missing = [f"task.{split}" for split, name in given.items() if not name]
    if data == "files" and missing:
        raise DataError(
            f"task.data=files needs {', '.join(missing)}: the name that two files share before "
            f".{source_lang} and .{target_lang}"
        )
    if data != "files" and len(missing) < len(given):
        raise DataError(f"task.data={data} does not read task.train, valid and test; files does")
    if data != "multi30k" and path:
        raise DataError(f"task.data={data} does not read task.path; only multi30k does")
    if data != "files" and drop_blank:
        raise DataError(f"task.data={data} does not read task.drop_blank; only files does")


def check_task(task: Mapping[str, Any], *, most_characters: int = 1 << 24) -> None:
    """Look at the beginning of the files that a configuration names, before torch is imported.

    Raises:
        DataError: As `check_source` and `line_pairs`.
    """
    languages = {name: task[name] for name in ("source_lang", "target_lang")}
    given = {split: task[split] for split in SPLITS}
    drop = task["drop_blank"]
    check_source(task["data"], path=task["path"], given=given, drop_blank=drop, **languages)
    if task["data"] != "files":
        return
    for name in given.values():
        left = most_characters
        for pair in line_pairs(*_both(f"{name}", tuple(languages.values())), allow_blank=drop):
            left -= sum(map(len, pair))
            if left < 0:
                break


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or .gz; DataError where one is longer than 1 MiB."""
    for number, piece in enumerate(read_pieces(path), 1):
        if not piece.ends_line:
            raise DataError(f"{path}:{number}: a line of over 1 MiB is no sentence")
        yield piece.text


def line_pairs(source: Path, target: Path, *, allow_blank: bool = False) -> Pairs:
    """The pairs of two files whose lines are translations of each other.

    Lines that are blank in both are left out.

    Args:
        source: A file.
        target: Another.
        allow_blank: One side of a pair may be blank, "".

    Raises:
        DataError: one has more lines, one side of a pair is blank, nothing is in them, or
            they are no UTF-8.
    """
    empty = True
    lines = zip_longest(read_lines(source), read_lines(target))
    for number, (a, b) in enumerate(lines, 1):
        if a is None or b is None:
            short, long = (source, target) if a is None else (target, source)
            raise DataError(
                f"{short} has {number - 1:,} lines and {long} {number + sum(1 for _ in lines):,}; "
                "line by line they must be translations of each other"
            )
        pair = a.strip(), b.strip()
        if any(pair) and not all(pair) and not allow_blank:
            blank, full = (source, target) if pair[1] else (target, source)
            raise DataError(
                f"{blank}:{number} is blank and {full}:{number} is not; remove the pair, or leave "
                "out all such pairs with task.drop_blank=true"
            )
        if any(pair):
            empty = empty and not all(pair)
            yield pair
    if empty:
        raise DataError(f"{source} and {target} hold no sentence pair; give some text")


def _phrases(phrases: Callable[[], dict[str, list]], split: str) -> Pairs:
    yield from phrases()[split]


def _files(files: tuple[Path, Path], *, allow_blank: bool = False) -> Split:
    key = f"{' '.join(hash_of(file) for file in files)} {allow_blank}"
    return Split(
        partial(line_pairs, *files, allow_blank=allow_blank), key, ", ".join(map(str, files))
    )


def _both(name: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """Return the two files of a name, the plain ones before those with .gz."""

    def find(language: str) -> Path:
        plain = Path(f"{name}.{language}").expanduser()
        packed = Path(f"{plain}.gz")
        return existing_file(packed if packed.exists() and not plain.exists() else plain)

    return find(languages[0]), find(languages[1])


# Multi30k

_MULTI30K = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
}
_MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
_MULTI30K_NAMES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


def _multi30k(split: str, languages: tuple[str, str], path: str | Path | None) -> tuple[Path, Path]:
    name = _MULTI30K_NAMES[split]
    if path is None:
        for language in languages:
            file = f"{name}.{language}.gz"
            fetch(
                Download(file, urls=(_MULTI30K_URL + file,), sha256=_MULTI30K[file]),
                folder=data_folder("multi30k"),
                manual="get the six files {train,val,test_2016_flickr}.{en,de}.gz from "
                "https://github.com/multi30k/dataset, data/task1/raw, and give their folder as "
                "task.path",
            )
        path = data_folder("multi30k")
    files = _both(f"{Path(path).expanduser() / name}", languages)
    for file in files:
        if file.suffix == ".gz" and hash_of(file) != _MULTI30K[file.name]:
            raise DataError(
                f"{file} is not the file of Multi30k, its SHA-256 is {hash_of(file)[:12]}...; get "
                "it anew, or read it as task.data=files"
            )
    return files


# WMT 2014

_WMT14 = {
    "training-parallel-europarl-v7.tgz": "wmt13",
    "training-parallel-commoncrawl.tgz": "wmt13",
    "training-parallel-nc-v9.tgz": "wmt14",
    "dev.tgz": "wmt14",
    "test-full.tgz": "wmt14",
}
_WMT14_TRAIN = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en")
_SEGMENT = re.compile(r'<seg id="\d+">(.*?)</seg>')


def _wmt14(languages: tuple[str, str]) -> dict[str, Split]:
    archives = [
        fetch(
            Download(name, urls=(f"https://www.statmt.org/{year}/{name}",)),
            folder=data_folder("wmt14"),
            manual=f"put {name} of https://www.statmt.org/wmt14/translation-task.html into "
            f"{data_folder('wmt14')}",
        )
        for name, year in _WMT14.items()
    ]
    folders = [extract(archive) for archive in archives]

    def find(name: str) -> Path:
        found = [file for folder in folders for file in sorted(folder.rglob(name))]
        if not found:
            raise DataError(f"the archives of WMT 2014 hold no {name}; delete and fetch them anew")
        return found[0]

    parts = [
        _files((find(f"{name}.{languages[0]}"), find(f"{name}.{languages[1]}")), allow_blank=True)
        for name in _WMT14_TRAIN
    ]
    sides = {"en": "newstest2014-deen-{}.en.sgm", "de": "newstest2014-deen-{}.de.sgm"}
    kinds = ("src", "ref")
    test = [find(sides[lang].format(kind)) for lang, kind in zip(languages, kinds, strict=True)]
    return {
        "train": Split(partial(_chained, parts), " ".join(part.key for part in parts)),
        "valid": _files(
            (find(f"newstest2013.{languages[0]}"), find(f"newstest2013.{languages[1]}"))
        ),
        "test": Split(partial(_sgml_pairs, *test), " ".join(map(hash_of, test))),
    }


def _chained(parts: list[Split]) -> Pairs:
    for part in parts:
        yield from part.pairs()


def _sgml_pairs(source: Path, target: Path) -> Pairs:
    sides = [
        [unescape(text).strip() for line in read_lines(file) for text in _SEGMENT.findall(line)]
        for file in (source, target)
    ]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise DataError(
            f"{source} has {len(sides[0])} segments and {target} {len(sides[1])}; fetch them anew"
        )
    yield from zip(*sides, strict=True)
