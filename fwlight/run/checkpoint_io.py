"""Checkpoint files: written atomically, verified when read, never trusted.

Beside `last.ckpt` stands `last.ckpt.sha256` in the format of `sha256sum`. Two files cannot be
replaced in one step, so while a checkpoint is being replaced the digest file lists both the old
and the new digest; a file is whole if it has one of them.
"""

import contextlib
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from fwlight.errors import CheckpointError, StorageError
from fwlight.run.files import staged, sync_folder, write_atomically


class AtomicCheckpointIO(CheckpointIO):
    """Saves with `save_checkpoint` and loads with `load_checkpoint` of this module."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see the module's `save_checkpoint`."""
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, without running code from it whatever is asked."""
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its digest."""
        Path(path).unlink(missing_ok=True)
        digest_path(Path(path)).unlink(missing_ok=True)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write `path` and its digest; at every moment the old or the new checkpoint is whole.

    Raises:
        StorageError: It cannot be written; the old file is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path, lambda file: torch.save(checkpoint, file)) as temporary:
            digest = sha256(temporary)
            _write_digests(path, [digest, *_digests_of_old(path)])
            os.replace(temporary, path)
            sync_folder(path.parent)
        _write_digests(path, [digest])
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise StorageError(
            f"the checkpoint {path} cannot be written ({_reason(error)}); the previous one is "
            "untouched: free some space, then resume=auto"
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU after verifying its digest.

    Only tensors and plain containers are accepted (`weights_only`). Without a digest file, as
    where somebody copied the checkpoint alone, the archive's own check sums are verified.

    Raises:
        CheckpointError: It is missing, a URL, damaged, or holds anything but plain data.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)):
        raise CheckpointError(f"the checkpoint {path} is a URL; download it and give the file")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give the path of a .ckpt file")
    try:
        _verify(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} is refused: it holds more than tensors and plain containers "
            "and could run code"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({_reason(error)}); use another one, or "
            "resume=auto for the newest that is whole"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a training run")
    if "_instantiator" in (checkpoint.get("hyper_parameters") or {}):
        raise CheckpointError(f"the checkpoint {path} is refused: it names code to run")
    return checkpoint


def step_of(path: str | Path) -> int:
    """Return how many updates a checkpoint has behind it.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return int(load_checkpoint(path).get("global_step", 0))


def newest_whole(
    paths: Iterable[Path], *, report: Callable[[str], None]
) -> tuple[Path, int] | None:
    """Return the whole checkpoint with the most updates, and their number.

    Args:
        paths: Where to look; every file is read and verified.
        report: Is told of each damaged one.
    """
    found: list[tuple[int, Path]] = []
    for path in paths:
        try:
            found.append((step_of(path), path))
        except CheckpointError as error:
            report(str(error))
    if not found:
        return None
    step, path = max(found)
    return path, step


def digest_path(path: Path) -> Path:
    """Where the digest of a checkpoint is kept."""
    return path.with_name(f"{path.name}.sha256")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path) -> None:
    if digests := _read_digests(path):
        if sha256(path) not in digests:
            raise ValueError("its SHA-256 is not the one written beside it")
        return
    with zipfile.ZipFile(path) as archive:
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"the check sum of {broken} is wrong")


def _read_digests(path: Path) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return re.findall(r"^([0-9a-f]{64})\b", digest_path(path).read_text(), re.MULTILINE)
    return []


def _digests_of_old(path: Path) -> list[str]:
    """Everything the file in place may be known by: a killed process may have left several."""
    return _read_digests(path) or ([sha256(path)] if path.exists() else [])


def _write_digests(path: Path, digests: list[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)
    write_atomically(digest_path(path), lambda file: file.write(text.encode()))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
