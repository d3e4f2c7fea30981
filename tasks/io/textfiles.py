"""UTF-8 text files read line by line in bounded memory, with errors that name file and line."""

import codecs
import contextlib
import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from fwlight.pipes import copied
from fwlight.types import DataError

_CHUNK_BYTES = 1 << 20


class Piece(NamedTuple):
    """A line, or a part of a very long one, cut between two words."""

    text: str
    ends_line: bool
    line_start: int = 0
    """Offset in bytes of the line's first byte in the file, of a .gz file unpacked."""
    has_end: bool = True
    """Whether the line that it ends has an end in the file, which the last one may lack."""

    @property
    def whole(self) -> str:
        """The text, with a line feed for the line's end."""
        return f"{self.text}\n" if self.ends_line and self.has_end else self.text


def existing_file(path: str | Path) -> Path:
    """The path itself, once it is known to be a file; of a pipe a copy, see `fwlight.pipes`.

    Raises:
        DataError: nothing is there, or it is a folder or device.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder, a text file is needed")
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if path.is_fifo():
            return copied(path)
        if not path.is_file():
            raise DataError(f"{path} is a device or socket, a text file is needed")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return path


def text_size(path: Path) -> int:
    """Bytes of a text, which of a .gz file are those that it unpacks to: it is read once for that.

    Raises:
        DataError: it cannot be read.
    """
    status = path.stat()
    if path.suffix != ".gz":
        return status.st_size
    return _unpacked_size(path, status.st_size, status.st_mtime_ns)


def read_pieces(path: Path, *, first: int = 0, end: int | None = None) -> Iterator[Piece]:
    """The lines of a UTF-8 file without their ends; a line over 1 MiB comes in several pieces.

    Of a part of a file the text from byte `first` to before byte `end` is read, as if there were no
    other; where one of them is inside of a character, from or to that character's end.

    A file whose name ends in .gz is unpacked on the way.

    A byte order mark at the start is dropped; a line feed with or without a carriage return before
    it ends a line. Where carriage returns come first, and no line feed in the same MiB, they do.

    Raises:
        DataError: invalid UTF-8, a NUL byte, a single word of over 1 MiB (each names file and
            line), or the file cannot be read.
    """
    with _opened(path) as file:
        if first == 0 and end is None:
            yield from _pieces(path, _lines(file))
        else:
            stop = None if end is None else _after_character(file, end)
            file.seek(start := _after_character(file, first))
            where = f"{path} from byte {start}" if start else path
            yield from _pieces(where, _lines(_Part(file, stop)))


class _Part:
    """What is left of a file up to some byte."""

    def __init__(self, file: IO[bytes], stop: int | None) -> None:
        self._file, self._stop = file, stop

    def readline(self, most: int) -> bytes:
        left = most if self._stop is None else self._stop - self._file.tell()
        return self._file.readline(min(most, left))


def _after_character(file: IO[bytes], place: int) -> int:
    """Return the first place from a byte on at which no character of UTF-8 goes on."""
    file.seek(place)
    others = file.read(3)
    return place + len(others) - len(others.lstrip(bytes(range(0x80, 0xC0))))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # pyright: ignore[reportReturnType]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole .gz file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=8)
def _unpacked_size(path: Path, *_state: int) -> int:
    with _opened(path) as file:
        return sum(map(len, iter(lambda: file.read(_CHUNK_BYTES), b"")))


def _lines(file: IO[bytes] | _Part) -> Iterator[tuple[bytes, bool]]:
    """Yield lines with their ends, and True; of a long one parts, the last of them with True."""
    by_returns: bool | None = None
    while chunk := file.readline(_CHUNK_BYTES):
        if chunk.endswith(b"\r"):  # and perhaps a line feed
            chunk += file.readline(1)
        if by_returns is None and (b"\r" in chunk or chunk.endswith(b"\n")):
            by_returns = not chunk.endswith(b"\n")
        if by_returns:
            for line in chunk.splitlines(keepends=True):
                yield line, line.endswith((b"\r", b"\n"))
        else:
            yield chunk, chunk.endswith(b"\n")


def _pieces(path: Path | str, lines: Iterator[tuple[bytes, bool]]) -> Iterator[Piece]:
    offset = line_start = 0
    line, carried, unfinished = 1, b"", False
    for chunk, ended in lines:
        raw = carried + (chunk if offset else chunk.removeprefix(codecs.BOM_UTF8))
        offset += len(chunk)
        carried, unfinished = b"", not ended
        if unfinished and len(raw) < _CHUNK_BYTES:  # the file's last line, most often
            carried = raw
            continue
        if unfinished:
            cut = max(raw.rfind(b" "), raw.rfind(b"\t"), raw.rfind(b"\r")) + 1
            if cut == 0:
                raise DataError(
                    f"{path}:{line}: over 1 MiB without a space; words must be separated by spaces"
                )
            raw, carried = raw[:cut], raw[cut:]
        yield Piece(_decoded(path, line, raw), not unfinished, line_start)
        if not unfinished:
            line, line_start = line + 1, offset
    if unfinished:
        yield Piece(_decoded(path, line, carried), True, line_start, False)


def _decoded(path: Path | str, line: int, raw: bytes) -> str:
    if b"\0" in raw:
        raise DataError(f"{path}:{line}: a NUL byte; this is no UTF-8 text")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise DataError(f"{path}:{line}: byte 0x{byte:02x} is not valid UTF-8") from None
