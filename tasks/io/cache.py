"""Folders of arrays that are made once and memory-mapped ever after.

    folder = cached_folder("words", key=hash_of_the_source, build=write_arrays)
    ids = read_array(folder / "train.npy")

A folder has its name when it is complete and not before: it is filled under another name, put on
the disk and renamed. A lock keeps processes from making the same folder twice (`tasks.io.locks`),
and the next builder removes what a killed one left.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fwlight.cache import cache_folder
from fwlight.errors import StorageError
from tasks.io.locks import locked, partial_path, remove_left_over

_SIZES = "sizes.json"
if TYPE_CHECKING:  # files are checked before torch is imported
    from torch import Tensor

Build = Callable[[Path], object]


def cached_folder(name: str, *, key: str, build: Build) -> Path:
    """Return the folder `<cache>/<name>-<key>`, which `build` fills if it is not there.

    Where the cache cannot be written, or there is none, a temporary folder is filled that goes with
    this process.

    Args:
        name: What it is, in one word.
        key: What its content depends on: a hash of the sources and of the way they are treated.
        build: Fills an empty folder with files; called at most once.

    Raises:
        StorageError: the disk is full, or no folder can be written at all.
    """
    root = cache_folder()
    if root is None:
        return _temporary(name, build)
    target = root / f"{name}-{key}"
    remove_left_over(root)
    if _whole(target):
        return target
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not os.access(root, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            stack.enter_context(locked(target))
        except OSError as error:
            reason = error.strerror or error
            print(f"warning: the cache {root} cannot be written ({reason})", file=sys.stderr)
            return _temporary(name, build)
        if not _whole(target):  # another process may have been faster
            _fill(target, build)
    return target


def read_array(path: Path) -> Tensor:
    """Return a .npy file as a tensor whose pages are read when they are used; never written back.

    Raises:
        StorageError: it cannot be read.
    """
    import torch

    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}); delete its folder, it is made anew"
        ) from error


class ArrayWriter:
    """Writes a one-dimensional .npy file piece by piece, its length known at the end only.

    Args:
        path: The file.
        dtype: Of the numbers.
    """

    def __init__(self, path: Path, dtype: np.dtype | type[np.generic]) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = path.open("wb")
        self._header()

    def append(self, numbers: np.ndarray) -> None:
        """Add numbers `[n]` at the end."""
        self._file.write(np.ascontiguousarray(numbers, self.dtype).data)
        self.length += len(numbers)

    def close(self) -> None:
        """Put the length into the header, which numpy leaves room for."""
        end = self._file.tell()
        self._file.seek(0)
        self._header()
        assert end == self._file.tell() + self.length * self.dtype.itemsize
        self._file.close()

    def _header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _fill(target: Path, build: Build) -> None:
    """Make `target` at once and whole; the caller holds its lock, where there are locks."""
    partial = partial_path(target)
    try:
        partial.mkdir()
        build(partial)
        files = [file for file in partial.rglob("*") if file.is_file()]
        sizes = {file.relative_to(partial).as_posix(): file.stat().st_size for file in files}
        (partial / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            _synchronise(path)
        _put(partial, target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"the cache folder {target} cannot be made ({error.strerror or error}); free some "
            "space or set FWLIGHT_CACHE to another place"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, target: Path) -> None:
    """Rename `partial`, unless another process has put its own there, where no lock kept it out."""
    if not _whole(target):
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
    try:
        partial.rename(target)
    except OSError:
        if not _whole(target):
            raise
    _synchronise(target.parent)


def _whole(folder: Path) -> bool:
    """Say whether all files are there with the sizes they were written with."""
    if not (folder / _SIZES).is_file():
        return False
    try:
        sizes = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _temporary(name: str, build: Build) -> Path:
    try:
        parent = Path(tempfile.mkdtemp(prefix="fwlight-"))
    except OSError as error:
        raise StorageError(
            f"there is no place for {name} ({error.strerror}); set FWLIGHT_CACHE to a folder"
        ) from error
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    target = parent / name
    _fill(target, build)
    return target


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems cannot.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
