"""Where compiled kernels are kept: whole, one's own, in a place that lets them be loaded.

The name of a library says for what it was compiled and ends in its SHA-256: one rename puts both in
place. A library is loaded from a file only if it has that digest, if it and its folder belong to
this user or to root, and if nobody else can write either: it is code that this process runs.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fwlight.cache import cache_folder

ROOM = 16 << 20
"""Bytes that compiling takes in a folder, with its own temporary files."""
_PREFIX = "fwlight-kernels-"
_PARTIAL = ".fwlight-build-"
_LEFT_OVER = 7200
"""Seconds after which nobody can still be compiling in a folder, or writing a file."""
_UNWRITABLE = (errno.EACCES, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EROFS)


def find(name: str) -> ctypes.CDLL | None:
    """Return the library of a name from the first place that has it whole; None if none has."""
    for folder in _places():
        for path in _matching(folder, f"{name}-*.so"):
            with contextlib.suppress(OSError):
                return _load(path)
    return None


def make(name: str, compiled: Callable[[Path], Path]) -> ctypes.CDLL:
    """Compile a library once, keep it in the first place where it can be loaded, and return it.

    A cache that cannot be written is done without. One that is full, that runs no code or that
    others can write is named in a warning, with the place in the folder for temporary files that
    is used instead, and that `find` finds at later starts.

    Args:
        name: For what it is compiled.
        compiled: Makes the library in the folder that it is given.

    Raises:
        OSError: If there is no such place.
    """
    content, refused = None, None
    for folder in _places(new=True):
        try:
            _check_place(folder)
            _remove_left_over(folder)
            if content is None:
                with tempfile.TemporaryDirectory(dir=folder, prefix=_PARTIAL) as work:
                    content = compiled(Path(work)).read_bytes()
            library = _load(_keep(folder, name, content))
        except OSError as error:
            refused = refused or (folder, error)
            if folder.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # if it is empty
            continue
        if refused is not None and refused[1].errno not in _UNWRITABLE:
            place, error = refused
            warnings.warn(
                f"compiled kernels cannot be kept in {place} ({error.strerror or error}), so they "
                f"are kept in {folder}; FWLIGHT_CACHE names another place",
                RuntimeWarning,
                stacklevel=2,
            )
        return library
    place, error = refused or ("any folder", OSError("there is none"))
    raise OSError(error.errno, f"{place}: {error.strerror or error}")


def _places(*, new: bool = False) -> Iterator[Path]:
    """Yield the cache, then folders of ours among the temporary files, and if wanted a new one."""
    cache = cache_folder()
    if cache is not None:
        if new:
            with contextlib.suppress(OSError):
                # Not for the group either, whatever it may do by default.
                cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        yield cache.absolute()
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.gettempdir())
        yield from (x for x in _matching(temporary, f"{_PREFIX}*") if _is_ours(x))
        if new:
            yield Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary))


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _check_place(folder: Path) -> None:
    """Raise OSError where a library could not be kept and loaded, before the time to compile it."""
    if not _is_ours(folder):
        raise PermissionError(errno.EPERM, "others can write there, or it is another user's")
    with tempfile.TemporaryFile(dir=folder) as probe:
        for _ in range(ROOM >> 20):
            probe.write(bytes(1 << 20))
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise OSError(errno.ENOEXEC, "its file system is mounted noexec")


def _remove_left_over(folder: Path) -> None:
    """Remove what processes that were killed have left in a place."""
    for path in _matching(folder, f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _LEFT_OVER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_ours(path: Path) -> bool:
    """Say whether a file or folder is this user's or root's, and nobody else can write it."""
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o002:
        return False
    return not found.st_mode & 0o020 or _is_private(found.st_gid)


def _is_private(group: int) -> bool:
    """Say whether a group is that of this user alone, as many systems make one for everybody."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and set(found.gr_mem) <= {user}


def _keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a library, on the disk before its name is, and drop damaged ones of the same name."""
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()}.so"
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=_PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o755)
        for old in _matching(folder, f"{name}-*.so"):
            with contextlib.suppress(OSError):
                if not _is_whole(old):
                    old.unlink()
        # At once and whole: other processes may build, or load, the same file.
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not all file systems can
            os.fsync(opened)
    finally:
        os.close(opened)
    return path


def _is_whole(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.rpartition("-")[2]


def _load(path: Path) -> ctypes.CDLL:
    if not (_is_ours(path.parent) and _is_ours(path)):
        raise PermissionError(errno.EPERM, "others can write it, or it is another user's")
    if not _is_whole(path):
        raise OSError(errno.EIO, "it is damaged")
    return ctypes.CDLL(str(path))
