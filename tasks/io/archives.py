"""Unpacking archives of which nothing is believed: no paths outside, no links, no bombs.

The `data` filter of tarfile would not do: it repairs absolute paths instead of refusing them, lets
links and sparse files in, and knows neither sizes nor .zip.
"""

import errno
import gzip
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fwlight.types import DataError
from tasks.io.cache import cached_folder
from tasks.io.downloads import hash_of

MAX_BYTES = 4 << 30
"""Most bytes that an archive may unpack to."""
MAX_FILES = 10_000
"""Most files and folders."""
MAX_HEADER, MAX_DIRECTORY = 1 << 16, 1 << 22
"""Most bytes in front of a member of a .tar, and at the end of a .zip, that say what is in it."""
_MAX_DEPTH = 64
_CHUNK = _MAX_PADDING = 1 << 20

Opener = Callable[[], IO[bytes]] | None
"""Opens a file's content; None for a folder."""
_BAD = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
)


def extract(archive: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Return a folder of the cache with the files of a .zip, .tar, .tgz or .gz, unpacked once.

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
                if opened is None:
                    continue
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
        # A place in the file that no file has, or a name.
        if error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(
        f"{archive} cannot be unpacked ({error or type(error).__name__}); delete it, and it is "
        "downloaded anew"
    )


class _Counted:
    """A stream of which `left` more bytes may be read, whatever those who read it are told."""

    def __init__(self, archive: Path, stream: IO[bytes], *, left: int) -> None:
        self._archive, self._stream, self.left = archive, stream, left

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes.

        Raises:
            DataError: they are more than are left.
        """
        raw = self._stream.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(raw)
        if self.left < 0:
            raise DataError(f"{self._archive} has headers that are too long; it is not unpacked")
        return raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _members(archive: Path, stack: ExitStack) -> Iterator[tuple[str, Opener]]:
    """Yield name and content of every member, and refuse what is neither file nor folder."""
    if not archive.is_file():
        raise DataError(f"{archive} is no file")
    file: Any = stack.enter_context(archive.open("rb"))
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive, file)
        return
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: Any = stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
    counted: Any = _Counted(archive, stream, left=MAX_HEADER)
    try:
        tar = stack.enter_context(tarfile.open(fileobj=counted, mode="r:"))  # noqa: SIM115 (it is)
    except tarfile.ReadError as error:
        if archive.suffix != ".gz" or not packed:
            raise DataError(
                f"{archive} is no .zip, .tar or .gz archive; delete it to download it anew"
            ) from error
        stream.seek(0)
        yield archive.stem, lambda: stream
    else:
        yield from _tar_members(archive, tar, counted)
        # What follows the last member is padding, and behind it the check sum of the compression.
        if len(stream.read(_MAX_PADDING)) == _MAX_PADDING:
            raise DataError(f"{archive} goes on behind its last file; it is not unpacked")


def _zip_members(archive: Path, file: IO[bytes]) -> Iterator[tuple[str, Opener]]:
    counted: Any = _Counted(archive, file, left=MAX_DIRECTORY)
    with zipfile.ZipFile(counted) as opened:
        counted.left = 1 << 62  # content: what is read of it is in the file
        for member in opened.infolist():
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                raise DataError(f"{archive} has a link in it, {member.filename}; not unpacked")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # The others unpack with as much memory as the file says.
                raise NotImplementedError(f"{member.filename} is neither stored nor deflated")
            is_dir = member.is_dir()
            yield member.filename, None if is_dir else lambda member=member: opened.open(member)


def _tar_members(archive: Path, tar: Any, counted: _Counted) -> Iterator[tuple[str, Opener]]:
    for member in tar:
        if not (member.isreg() or member.isdir()) or member.issparse():
            kind = "sparse file" if member.issparse() else "link or device"
            raise DataError(f"{archive} has a {kind} in it, {member.name}; not unpacked")
        # It would keep all the headers.
        tar.members.clear()
        tar.pax_headers.clear()
        counted.left = MAX_HEADER + member.size
        yield member.name, (lambda member=member: _content(tar, member)) if member.isreg() else None
        counted.left = MAX_HEADER


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    return content


def _inside(archive: Path, name: str) -> PurePosixPath:
    """Return a member's path, once it is known to stay inside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if len(path.parts) > _MAX_DEPTH:
        raise DataError(f"{archive} has a path in it of over {_MAX_DEPTH} folders; not unpacked")
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive} has a path in it that leads elsewhere, {name!r}; not unpacked")
    return path
