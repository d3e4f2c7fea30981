"""The sources of sentence pairs: each split read anew at every pass, in bounded memory."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fwlight.types import DataError
from tasks.required import require
from tasks.text.cldr import phrase_pairs
from tasks.text.public_pairs import multi30k, wmt14
from tasks.text.sentence_pairs import Pairs, Split, files_split, line_pairs, two_files

SPLITS = ("train", "valid", "test")
SOURCES = ("cldr", "multi30k", "wmt14", "files")
LANGUAGES = ("en", "de")


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
        return {only: files_split(two_files(f"{given[only]}", languages), allow_blank=drop_blank)}
    if data == "cldr":
        key = f"cldr 1 {languages} {seed} babel {version('babel')}"
        hashed = hashlib.sha256(key.encode()).hexdigest()
        phrases = partial(phrase_pairs, *languages, seed=seed)
        return {
            split: Split(partial(_phrases, phrases, split), f"{split} {hashed}") for split in wanted
        }
    if data == "files":
        files = {split: two_files(f"{given[split]}", languages) for split in wanted}
        return {split: files_split(files[split], allow_blank=drop_blank) for split in wanted}
    if data == "multi30k":
        return {split: files_split(multi30k(split, languages, path)) for split in wanted}
    return {split: found for split, found in wmt14(languages).items() if split in wanted}


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
        DataError: As `check_source` and `line_pairs`; also without a number of subwords.
    """
    require(task, "vocab_size")
    languages = {name: task[name] for name in ("source_lang", "target_lang")}
    given = {split: task[split] for split in SPLITS}
    drop = task["drop_blank"]
    check_source(task["data"], path=task["path"], given=given, drop_blank=drop, **languages)
    if task["data"] != "files":
        return
    for name in given.values():
        left = most_characters
        for pair in line_pairs(*two_files(f"{name}", tuple(languages.values())), allow_blank=drop):
            left -= sum(map(len, pair))
            if left < 0:
                break


def _phrases(phrases: Callable[[], dict[str, list]], split: str) -> Pairs:
    yield from phrases()[split]
