"""Unpacking archives of which nothing is believed: no paths outside, no links, no bombs."""

import errno
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO

from fwlight.types import DataError
from tasks.cache import cached_folder
from tasks.downloads import hash_of

MAX_BYTES = 4 << 30
"""Most bytes that an archive may unpack to."""
MAX_FILES = 10_000
_CHUNK = _MAX_PADDING = 1 << 20

Opener = Callable[[], IO[bytes]]
_BAD = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
)


def extract(archive: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Return a folder of the cache with the files of a .zip, .tar.* or .gz file, unpacked once.

    Args:
        archive: The file.
        max_bytes: More than this is a mistake or an attack.

    Raises:
        DataError: it is damaged, has more in it, or a member that is a link, a device or has a
            path that leads elsewhere.
        StorageError: the disk is full.
    """
    return cached_folder(
        archive.name.split(".")[0],
        key=hash_of(archive)[:16],
        build=lambda folder: unpack(archive, folder, max_bytes=max_bytes),
    )


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Fill an empty folder with the files of an archive; arguments and errors as in `extract`."""
    left = max_bytes
    try:
        with ExitStack() as stack:
            for number, (name, opened) in enumerate(_members(archive, stack)):
                if number >= MAX_FILES:
                    raise DataError(f"{archive} has over {MAX_FILES:,} files; it is not unpacked")
                target = folder / _inside(archive, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, target.open("xb") as file:
                    # The sizes that an archive states are not believed.
                    while chunk := source.read(min(_CHUNK, left + 1)):
                        left -= len(chunk)
                        if left < 0:
                            raise DataError(
                                f"{archive} unpacks to over {max_bytes:,} bytes; it is not unpacked"
                            )
                        file.write(chunk)
    except DataError:
        raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{archive} has two files of one name; it is not unpacked") from error
    except (*_BAD, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place in the file that no file has
            raise
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(
        f"{archive} cannot be unpacked ({error or type(error).__name__}); delete it, and it is "
        "downloaded anew"
    )


def _members(archive: Path, stack: ExitStack) -> Iterator[tuple[str, Opener]]:
    """Yield name and content of every file, and refuse what is neither file nor folder."""
    if zipfile.is_zipfile(archive):
        opened = stack.enter_context(zipfile.ZipFile(archive))
        for member in opened.infolist():
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                raise DataError(f"{archive} has a link in it, {member.filename}; not unpacked")
            if not member.is_dir():
                yield member.filename, lambda member=member: opened.open(member)
    elif tarfile.is_tarfile(archive):
        tar = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 (it is one)
        for member in tar:
            if not (member.isreg() or member.isdir()):
                raise DataError(
                    f"{archive} has a link or device in it, {member.name}; not unpacked"
                )
            if member.isreg():
                yield member.name, lambda member=member: _content(tar, member)
        # What follows the last member is padding, and behind it the check sum of the compression.
        rest = tar.fileobj
        if rest is not None and len(rest.read(_MAX_PADDING)) == _MAX_PADDING:
            raise DataError(f"{archive} goes on behind its last file; it is not unpacked")
    elif archive.suffix == ".gz":
        yield archive.stem, lambda: gzip.GzipFile(archive)  # pyright: ignore[reportReturnType]
    else:
        raise DataError(f"{archive} is no .zip, .tar or .gz archive; delete it to download it anew")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    return content


def _inside(archive: Path, name: str) -> PurePosixPath:
    """Return a member's path, once it is known to stay inside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive} has a path in it that leads elsewhere, {name!r}; not unpacked")
    return path
