"""Sentence pairs of two files whose lines are translations of each other, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from fwlight.types import DataError
from tasks.io.downloads import hash_of
from tasks.io.textfiles import existing_file, read_pieces

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


def files_split(files: tuple[Path, Path], *, allow_blank: bool = False) -> Split:
    """Return the split of two files."""
    key = f"{' '.join(hash_of(file) for file in files)} {allow_blank}"
    return Split(
        partial(line_pairs, *files, allow_blank=allow_blank), key, ", ".join(map(str, files))
    )


def two_files(name: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """Return the two files of a name, the plain ones before those with .gz."""

    def find(language: str) -> Path:
        plain = Path(f"{name}.{language}").expanduser()
        packed = Path(f"{plain}.gz")
        return existing_file(packed if packed.exists() and not plain.exists() else plain)

    return find(languages[0]), find(languages[1])
