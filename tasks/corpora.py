"""The sources of language-model text: each split as lines of words, read anew at every pass."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fwlight.types import DataError
from tasks.stdlib_prose import prose_splits
from tasks.textfiles import existing_file, read_pieces
from tasks.tokenizer import EOS, tokenize

SPLITS = ("train", "valid", "test")
SOURCES = ("stdlib", "wikitext", "text")

Words = Callable[[], Iterator[list[str]]]
"""One call is one pass over a split, in runs of words; `<eos>` ends a line."""

_TRAIN_SHARE, _VALID_SHARE = 0.90, 0.05


def open_corpus(
    data: str,
    *,
    path: str | Path | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
) -> dict[str, Words]:
    """The three splits of a source.

    - `stdlib`: the running Python's own prose, see `tasks.stdlib_prose`; takes no path.
    - `wikitext`: token files as distributed, `wiki.{train,valid,test}.tokens` in the folder `path`,
      any of them replaced by `train`, `valid` or `test`; `line.split()` and `<eos>` on every line,
      blank ones too.
    - `text`: the UTF-8 files `train`, `valid` and `test`, or the one file `path`, of which the
      lines starting in the first 90 % of the bytes are for training and 5 % each for the others;
      `<eos>` ends every line, blank ones too.

    Raises:
        DataError: an unknown source, missing or superfluous paths, or a file that is not there.
    """
    given = {"train": train, "valid": valid, "test": test}
    if data == "stdlib":
        if path or any(given.values()):
            raise DataError("task.data=stdlib reads no files; give task.data=text or wikitext too")
        return {split: partial(_stdlib, split) for split in SPLITS}
    if data == "wikitext":
        return {
            split: partial(_file, _token_file(split, path, given[split]), str.split)
            for split in SPLITS
        }
    if data == "text":
        return _text(path, given)
    raise DataError(f"task.data={data} is unknown; choose one of {', '.join(SOURCES)}")


def _token_file(split: str, folder: str | Path | None, override: str | Path | None) -> Path:
    if override:
        return existing_file(override)
    if not folder:
        raise DataError(
            "task.data=wikitext needs task.path, a folder with wiki.{train,valid,test}.tokens, "
            f"or the file task.{split}"
        )
    if not Path(folder).expanduser().is_dir():
        raise DataError(
            f"task.path={folder} is no folder; task.data=wikitext needs one with "
            "wiki.{train,valid,test}.tokens"
        )
    return existing_file(Path(folder) / f"wiki.{split}.tokens")


def _text(path: str | Path | None, given: dict[str, str | Path | None]) -> dict[str, Words]:
    files = {split: name for split, name in given.items() if name}
    if path and not files:
        file = existing_file(path)
        size = file.stat().st_size
        edges = (0, int(size * _TRAIN_SHARE), int(size * (_TRAIN_SHARE + _VALID_SHARE)), size)
        return {
            split: partial(_file, file, tokenize, first=edges[i], end=edges[i + 1])
            for i, split in enumerate(SPLITS)
        }
    if not path and len(files) == len(SPLITS):
        return {split: partial(_file, existing_file(files[split]), tokenize) for split in SPLITS}
    raise DataError(
        "task.data=text needs either task.path, one file, or all of task.train, task.valid and "
        "task.test"
    )


def _stdlib(split: str) -> Iterator[list[str]]:
    for paragraph in prose_splits()[split]:
        yield [*paragraph, EOS]


def _file(
    path: Path,
    cut_words: Callable[[str], list[str]],
    *,
    first: int = 0,
    end: int | None = None,
) -> Iterator[list[str]]:
    """Words of the lines that start at byte `first` or later and before byte `end`."""
    empty = True
    for piece in read_pieces(path):
        if piece.line_start >= first and (end is None or piece.line_start < end):
            words = cut_words(piece.text)
            empty = empty and not words
            yield [*words, EOS] if piece.ends_line else words
    if empty:
        where = "" if end is None else f" in bytes {first} to {end}, the part for one of the splits"
        raise DataError(f"{path} holds no words{where}; give more text")
