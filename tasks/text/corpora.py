"""The sources of language-model text: each split as lines, read anew at every pass."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fwlight.types import DataError
from tasks.io.textfiles import Piece, existing_file, read_pieces, text_size
from tasks.required import require
from tasks.text.public_texts import ONE_FILE, PATTERNS, file_of, files_of
from tasks.text.stdlib_prose import prose_splits
from tasks.text.tokens import TOKENIZERS

SPLITS = ("train", "valid", "test")
DOWNLOADED = ("wikitext103", "wikitext2", "ptb", *ONE_FILE)
SOURCES = ("stdlib", *DOWNLOADED, "wikitext", "text")

Pieces = Callable[[], Iterator[Piece]]
"""One call is one pass over a split."""

_TRAIN_SHARE, _VALID_SHARE = 0.90, 0.05


@dataclass(frozen=True)
class Corpus:
    """A source of text."""

    name: str
    """`task.data`, and what else decides how files are read."""
    splits: dict[str, Pieces]
    files: tuple[Path, ...] = ()
    """What the splits are read from; their content decides what they hold."""
    spaced: bool = False
    """Whether words stand between spaces; else they are cut as prose."""


def open_corpus(
    data: str,
    *,
    path: str | Path | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    only: str | None = None,
) -> Corpus:
    """Return the three splits of a source, or `only` one; what has to be downloaded is, once.

    - `stdlib`: the running Python's own prose, see `tasks.text.stdlib_prose`; takes no path.
    - `wikitext103`, `wikitext2`, `ptb`: downloaded, or as distributed in the folder `path`:
      `wiki.{train,valid,test}.tokens`, `ptb.{train,valid,test}.txt`; words between spaces, and
      `<eos>` on every line, blank ones too.
    - `text8`, `enwik8`, `shakespeare`: downloaded, or the file `text8`, `enwik8` or `input.txt` in
      the folder `path`, split at the bytes that others split it at: 90, 5 and 5 million, and 90 %
      and the rest, which is validated and tested on.
    - `wikitext`: any token files of that kind in the folder `path`, each of them replaced by
      `train`, `valid` or `test` where given.
    - `text`: the UTF-8 files `train`, `valid` and `test`, or the one file `path`, of which the
      lines starting in the first 90 % of the (unpacked) bytes are for training and 5 % each for
      the others; `<eos>` ends every line, blank ones too.

    The `only` split of any source may be a file of its own (`valid`, `test`), its words cut as
    those of the source are.

    Raises:
        DataError: an unknown source, missing or superfluous paths, or a file that is not there.
        StorageError: a download fails.
    """
    given = {"train": train, "valid": valid, "test": test}
    wanted = SPLITS if only is None else (only,)
    if data not in SOURCES:
        raise DataError(f"task.data={data} is unknown; choose one of {', '.join(SOURCES)}")
    if only is not None and (name := given[only]):
        file = existing_file(name)
        return Corpus(data, {only: partial(_file, file)}, (file,), data in PATTERNS)
    if data == "stdlib":
        if path or any(given.values()):
            raise DataError("task.data=stdlib reads no files; give task.data=text or wikitext too")
        return Corpus(data, {split: partial(_stdlib, split) for split in wanted})
    if data in PATTERNS:
        if needs_network(data, {"path": path, **given}):
            files = files_of(data)
        else:
            files = {split: _token_file(data, split, path, given[split]) for split in wanted}
        splits: dict[str, Pieces] = {split: partial(_file, files[split]) for split in wanted}
        return Corpus("tokens", splits, tuple(files[split] for split in wanted), spaced=True)
    if data in ONE_FILE:
        return _one_file(data, path, {split: given[split] for split in wanted})
    return _text(path, given)


def needs_network(data: str, paths: Mapping[str, Any]) -> bool:
    """Say whether a source is downloaded, as not all of its files are given."""
    return data in DOWNLOADED and not paths["path"] and not all(paths[name] for name in SPLITS)


def check_task(task: Mapping[str, Any], *, most_bytes: int = 1 << 24) -> None:
    """Look at the beginning of every file that a configuration names, before torch is imported.

    Of a tokenizer.json all is looked at.

    Raises:
        DataError: As `open_corpus` and its splits; also without the length of a segment.
    """
    require(task, "seq_len", "vocab_size")
    if task.get("tokenizer", "words") not in TOKENIZERS:
        from tasks.text.byte_pairs import read_tokenizer  # only a file needs the library

        read_tokenizer(task["tokenizer"])
    paths = {name: task[name] for name in ("path", *SPLITS)}
    if needs_network(task["data"], paths):
        return
    corpus = open_corpus(task["data"], **paths)
    for file in corpus.files:
        left = most_bytes
        for piece in read_pieces(file):
            left -= len(piece.text)
            if left < 0:
                return
    for pieces in corpus.splits.values() if corpus.files else ():
        next((piece for piece in pieces() if piece.text.strip()), None)  # without words it says so


def _token_file(
    data: str, split: str, folder: str | Path | None, override: str | Path | None
) -> Path:
    if override:
        return existing_file(override)
    name = PATTERNS[data].format("{train,valid,test}")
    if not folder:
        raise DataError(
            f"task.data={data} needs task.path, a folder with {name}, or the file task.{split}"
        )
    return _in_folder(data, folder, PATTERNS[data].format(split), needed=name)


def _in_folder(data: str, folder: str | Path, name: str, *, needed: str) -> Path:
    if not Path(folder).expanduser().is_dir():
        raise DataError(
            f"task.path={folder} is no folder; task.data={data} needs one with {needed}"
        )
    return existing_file(Path(folder) / name)


def _one_file(
    data: str, folder: str | Path | None, given: Mapping[str, str | Path | None]
) -> Corpus:
    """Return the parts of a text that comes in one file; a file that is given is a whole split."""
    whole: Path | None = None
    splits: dict[str, Pieces] = {}
    files: list[Path] = []
    for split, name in given.items():
        if name:
            files.append(existing_file(name))
            splits[split] = partial(_file, files[-1])
        else:
            whole = whole or _whole(data, folder)
            files.append(whole)
            first, end = ONE_FILE[data].splits[split]
            splits[split] = partial(read_pieces, whole, first=first, end=end)
    others = [split for split, name in given.items() if name]
    return Corpus(" ".join([data, *others]), splits, tuple(files))


def _whole(data: str, folder: str | Path | None) -> Path:
    name, size = ONE_FILE[data].name, ONE_FILE[data].size
    file = _in_folder(data, folder, name, needed=name) if folder else file_of(data)
    if (found := text_size(file)) != size:
        raise DataError(f"{file} has {found:,} bytes; the text that others split has {size:,}")
    return file


def _text(path: str | Path | None, given: dict[str, str | Path | None]) -> Corpus:
    files = {split: name for split, name in given.items() if name}
    if path and not files:
        file = existing_file(path)
        size = text_size(file)
        edges = (0, int(size * _TRAIN_SHARE), int(size * (_TRAIN_SHARE + _VALID_SHARE)), size)
        parts: dict[str, Pieces] = {
            split: partial(_file, file, first=edges[i], end=edges[i + 1])
            for i, split in enumerate(SPLITS)
        }
        return Corpus("text", parts, (file,))
    if not path and len(files) == len(SPLITS):
        three = {split: existing_file(files[split]) for split in SPLITS}
        return Corpus(
            "text",
            {split: partial(_file, three[split]) for split in SPLITS},
            tuple(three.values()),
        )
    raise DataError(
        "task.data=text needs either task.path, one file, or all of task.train, task.valid and "
        "task.test"
    )


def _stdlib(split: str) -> Iterator[Piece]:
    for paragraph in prose_splits()[split]:
        yield Piece(paragraph, True)


def _file(path: Path, *, first: int = 0, end: int | None = None) -> Iterator[Piece]:
    """Yield the lines that start at byte `first` or later and before byte `end`."""
    empty, lines, begun = True, 0, 0
    for piece in read_pieces(path):
        lines += piece.ends_line
        if piece.line_start >= first and (end is None or piece.line_start < end):
            empty = empty and not piece.text.strip()
            begun += piece.ends_line
            yield piece
    if empty:
        where = "" if end is None else f" in bytes {first} to {end}, the part for one of the splits"
        reason = "; give more text"
        if lines and not begun:
            reason = (
                f": it is split between lines, and none of its {lines} begins there; give it "
                "shorter lines, or three files as task.train, task.valid and task.test"
            )
        raise DataError(f"{path} holds no words{where}{reason}")
