"""One process at a time makes a file or folder, and what a killed one left of it goes.

remove_left_over(folder)
with locked(folder / "words"):
    partial = partial_path(folder / "words")
    ...  # fill it, then rename it
"""

import contextlib
import functools
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import lock_descriptor, unlock_descriptor

from fwlight.errors import StorageError

TOLD_AFTER = 5.0
"""Seconds after which a process that waits says for whom."""
PATIENCE = 600.0
"""Seconds in which the one that is waited for must have written something."""
_PARTIAL = ".partial"


def partial_path(target: Path) -> Path:
    """Return a new name beside `target` for what it is made under."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of what is to be made, `.<name>.lock` beside it, waiting for it.

    It is the system's, so it goes with its process. Where the file system has no locks the block
    runs all the same, with one warning: what is in it must do no harm when done twice.

    Raises:
        StorageError: the lock is no file, or another process has it and does nothing.
        OSError: the lock cannot be written.
    """
    with _opened(_lock_of(target)) as file:
        held = _taken(file, target)
        try:
            yield
        finally:
            if held:  # a process forked meanwhile has the file too
                unlock_descriptor(file.fileno())


def remove_left_over(folder: Path) -> None:
    """Remove what processes that are gone were making in a folder: what nobody has the lock of."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        target = folder / partial.name[1:].removesuffix(_PARTIAL).rpartition(".")[0]
        # Without leave to write, or without locks, nobody can tell.
        with contextlib.suppress(OSError), _opened(_lock_of(target)) as file:
            if lock_descriptor(file.fileno(), blocking=False):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _opened(path: Path) -> IO[bytes]:
    """Open a file for reading and writing, whatever else of that name there may be."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)  # not every system has all
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StorageError(f"{path} is no file but a pipe or device; delete it")
    return file


def _taken(file: IO[bytes], target: Path) -> bool:
    """Wait for a lock and put this process's number into its file; False: there are no locks."""
    began = stirred = time.monotonic()
    told, size = False, 0
    while True:
        try:
            if lock_descriptor(file.fileno(), blocking=False):
                break
        except OSError as error:
            _tell_of_no_locks(error.strerror)
            return False
        now, found = time.monotonic(), _bytes_made(target)
        if found != size:
            size, stirred = found, now
        if not told and now - began > TOLD_AFTER:
            told = True
            print(f"waiting for {_owner(file)}, which makes {target}", file=sys.stderr, flush=True)
        if now - stirred > PATIENCE:
            raise StorageError(
                f"{target} is being made by {_owner(file)}, which has written nothing for "
                f"{PATIENCE:g} s; continue or end that process"
            )
        time.sleep(0.1)
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.seek(0)
        file.write(str(os.getpid()).encode())
    return True


def _owner(file: IO[bytes]) -> str:
    with contextlib.suppress(OSError):  # Windows lets nobody read what is locked
        file.seek(0)
        if (number := file.read(20)).isdigit():
            return f"process {number.decode()}"
    return "another process"


def _bytes_made(target: Path) -> int:
    """Return how much there is of what another process makes under a name of `partial_path`."""
    size = 0
    with contextlib.suppress(OSError):  # it may go at any moment
        for partial in target.parent.glob(f".{target.name}.*{_PARTIAL}"):
            for path in (partial, *partial.rglob("*")):
                size += path.stat().st_size
    return size


@functools.cache
def _tell_of_no_locks(reason: str) -> None:
    print(
        f"warning: the file system of the cache has no locks ({reason}); two runs that start at "
        "once may both do the same work there",
        file=sys.stderr,
        flush=True,
    )
