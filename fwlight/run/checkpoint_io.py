"""Checkpoint files: written atomically, verified when read, never trusted.

See `fwlight.integrity` for the digest beside each.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from fwlight.errors import CheckpointError, StorageError
from fwlight.integrity import (
    Verified,
    check_whole,
    damaged,
    digest_path,
    read_digests,
    reason,
    sha256,
)
from fwlight.run.checkpoint_form import check_form
from fwlight.run.files import staged, sync_folder, write_atomically


class AtomicCheckpointIO(CheckpointIO):
    """Saves with `save_checkpoint` and loads with `load_checkpoint` of this module."""

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[Path, dict[str, Any]] = {}

    def hand_over(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Let the next load of a file return what was read of it already, and forget it then."""
        self._read[path] = checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see the module's `save_checkpoint`."""
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, without running code from it whatever is asked."""
        return self._read.pop(Path(path), None) or load_checkpoint(path)

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
    except (OSError, RuntimeError) as error:
        # torch reports where its archive had got to, and what the disk said as the cause.
        cause = error.__cause__ or error.__context__ or error
        told = (isinstance(cause, OSError) and cause.strerror) or reason(error)
        raise StorageError(
            f"the checkpoint {path} cannot be written ({told}); the previous one is "
            "untouched: free some space, then resume=auto"
        ) from error


def load_checkpoint(path: str | Path, *, verified: Verified | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU after verifying its digest.

    Only tensors and plain containers are accepted (`weights_only`). Without a digest file, as
    where somebody copied the checkpoint alone, the archive's own check sums are verified.

    Args:
        path: The checkpoint.
        verified: What `check_whole` has returned of it.

    Raises:
        CheckpointError: It is missing, a URL, damaged, holds anything but plain data, or a part of
            it is not of its form.
    """
    check_whole(path, known=verified)
    path = Path(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} is refused: it holds more than tensors and plain containers "
            "and could run code"
        ) from error
    except Exception as error:  # the restricted unpickler meets nonsense in many ways
        raise damaged(path, error) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a training run")
    try:
        check_form(checkpoint)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if "_instantiator" in (checkpoint.get("hyper_parameters") or {}):
        raise CheckpointError(f"the checkpoint {path} is refused: it names code to run")
    return checkpoint


def newest_whole(
    paths: Iterable[Path], *, report: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Return the whole checkpoint with the most updates, and what it holds.

    Args:
        paths: Where to look; every file is read and verified.
        report: Is told of each damaged one.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    for path in sorted(paths):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            report(str(error))
        else:
            if found is None or step_of(checkpoint) >= step_of(found[1]):
                found = path, checkpoint
    return found


def step_of(checkpoint: Mapping[str, Any]) -> int:
    """Return how many updates a checkpoint has behind it."""
    return int(checkpoint.get("global_step", 0))


def _digests_of_old(path: Path) -> list[str]:
    """Everything the file in place may be known by: a killed process may have left several."""
    return read_digests(path) or ([sha256(path)] if path.exists() else [])


def _write_digests(path: Path, digests: list[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in digests)
    write_atomically(digest_path(path), lambda file: file.write(text.encode()))
