"""Writing files so that a crash leaves the old or the new one, never half of one."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in place of `path`.

    The data is on the disk before the name points to it, and the name before this returns. On an
    error the temporary file is removed and the old file is untouched.
    """
    with staged(path, write) as temporary:
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def staged(path: Path, write: Callable[[BinaryIO], object]):
    """Yield a written and synchronised temporary file beside `path`; gone at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems cannot; the rename itself is atomic all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left half written, as far as it can be removed."""
    for file in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # somebody's folder of such a name
            file.unlink()
