"""Files of data sets from the network: fetched once, held to a hash.

    archive = fetch(
        Download("ptb.tgz", urls=("https://...",)), folder=data_folder("ptb"), manual="..."
    )
    folder = extract(archive)  # of tasks.io.archives

A file has its name when it is complete and its SHA-256 right, and not before. The hash is the
pinned one, or where none is known that of the first download: it is kept beside the file, in the
format of `sha256sum`, and what is found there later is held to it.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from fwlight.cache import cache_folder
from fwlight.errors import StorageError
from tasks.io.locks import locked, partial_path, remove_left_over
from tasks.io.transfers import BrokenError, Transfer

ATTEMPTS = 4
"""How often a file is tried for, over all its addresses."""
PAUSE = 1.0
"""Seconds before the second attempt, doubled before each further one."""


@dataclass(frozen=True)
class Download:
    """A file on the network."""

    name: str
    """File name in the data set's folder."""
    urls: tuple[str, ...]
    """Where it is, http or https; tried in turn."""
    sha256: str | None = None
    """What it must be, in hexadecimal; None: what it was at the first download."""


def data_folder(name: str) -> Path:
    """Return the folder of a data set's files in the cache, `<cache>/data/<name>`.

    Raises:
        StorageError: no variable says where the cache is.
    """
    root = cache_folder()
    if root is None:
        raise StorageError(f"there is no place for {name}: set FWLIGHT_CACHE to a folder")
    return root / "data" / name


def fetch(download: Download, *, folder: Path, manual: str) -> Path:
    """Return the file in `folder`, downloaded if it is not there, its hash verified.

    Several processes may ask at once: one of them downloads. A transfer that was cut is continued
    within a call where the server can and says that the file is still the same, else begun again.

    Args:
        download: What.
        folder: Where to, see `data_folder`; made if need be.
        manual: What a user without network does instead: the end of the error message.

    Raises:
        StorageError: it cannot be had, cannot be written, or its hash is another.
    """
    target = folder / download.name
    remove_left_over(folder)
    if target.is_file() and _expected(target, download):
        return _verified(target, download)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if not target.is_file():
                _download(download, target, manual)
            return _verified(target, download)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{target} cannot be written ({error.strerror or error}); free some space or set "
            "FWLIGHT_CACHE to another place"
        ) from error


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        StorageError: it is no file but a pipe, say, which can be read once or never ends.
    """
    if not path.is_file():
        raise StorageError(f"{path} is no file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(target: Path, download: Download) -> Path:
    """Return `target` if it is what is pinned or was recorded; record it if nothing is known."""
    found, expected = hash_of(target), _expected(target, download)
    if expected is None:
        temporary = partial_path(target)
        temporary.write_text(f"{found}  {target.name}\n", encoding="utf-8")
        temporary.replace(_record_of(target))
    elif found != expected:
        raise StorageError(
            f"{target} has the SHA-256 {found[:12]}..., not {expected[:12]}...: it is damaged or "
            "another file; delete it, and it is downloaded anew"
        )
    return target


def _record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _expected(target: Path, download: Download) -> str | None:
    """Return the hash that is pinned or was recorded, None if there is none."""
    record = _record_of(target)
    if download.sha256 or not record.is_file():
        return download.sha256
    try:
        return record.read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeError):
        return None


def _download(download: Download, target: Path, manual: str) -> None:
    """Make `target`, in a bounded number of attempts."""
    partial = partial_path(target)
    expected = _expected(target, download)
    transfer = Transfer(partial, name=target.name, needs_length=expected is None)
    urls, reason = list(download.urls), ""
    try:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            url = urls[attempt % len(urls)]
            try:
                transfer.run(url)
                if expected is not None and (found := hash_of(partial)) != expected:
                    transfer.restart()
                    raise BrokenError(f"its SHA-256 is {found[:12]}..., not {expected[:12]}...")
                _put(partial, target)
                return
            except BrokenError as error:
                reason = f"{url}: {error}"
                if error.final:
                    urls.remove(url)
                if not urls:
                    break
        raise StorageError(f"{target.name} cannot be downloaded ({reason}); {manual}")
    finally:
        partial.unlink(missing_ok=True)


def _put(partial: Path, target: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
