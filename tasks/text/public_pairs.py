"""Multi30k and the news task of WMT 2014, from the network or a folder."""

import re
from functools import partial
from html import unescape
from pathlib import Path

from fwlight.types import DataError
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch, hash_of
from tasks.text.sentence_pairs import Pairs, Split, files_split, read_lines, two_files

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


def multi30k(split: str, languages: tuple[str, str], path: str | Path | None) -> tuple[Path, Path]:
    """Return the two files of a split, from the folder `path` or downloaded."""
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
    files = two_files(f"{Path(path).expanduser() / name}", languages)
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


def wmt14(languages: tuple[str, str]) -> dict[str, Split]:
    """Return the three splits, downloaded."""
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
        files_split(
            (find(f"{name}.{languages[0]}"), find(f"{name}.{languages[1]}")), allow_blank=True
        )
        for name in _WMT14_TRAIN
    ]
    sides = {"en": "newstest2014-deen-{}.en.sgm", "de": "newstest2014-deen-{}.de.sgm"}
    kinds = ("src", "ref")
    test = [find(sides[lang].format(kind)) for lang, kind in zip(languages, kinds, strict=True)]
    return {
        "train": Split(partial(_chained, parts), " ".join(part.key for part in parts)),
        "valid": files_split(
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
