"""The mean of several checkpoints' weights."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from fwlight.errors import CheckpointError
from fwlight.run.checkpoint_io import load_checkpoint, save_checkpoint
from fwlight.run.text import warn


def average_checkpoints(folder: Path, *, last: int) -> Path | None:
    """Write `averaged.ckpt`, the newest kept copy with the mean of the newest weights.

    Whole numbers are the newest copy's.

    Args:
        folder: Where `step-000100.ckpt` and the like are.
        last: How many of them are averaged.

    Returns:
        The new checkpoint's path. None, with a warning, if there are not so many, as a time limit
        or early stopping ended the training before: the mean of fewer would be another result.

    Raises:
        CheckpointError: They are not of one model.
    """
    kept = sorted(folder.glob("step-*.ckpt"))[-last:]
    if len(kept) < last:
        warn(
            f"callbacks.checkpoint.average_last={last}, but the training ended with {len(kept)} "
            "kept copies: the last state is tested"
        )
        return None
    target = folder / "averaged.ckpt"
    _write(kept, target)
    return target


@rank_zero_only
def _write(kept: list[Path], target: Path) -> None:
    *others, newest = kept
    checkpoint = load_checkpoint(newest)
    weights = {
        name: value.double() if value.is_floating_point() else value
        for name, value in checkpoint["state_dict"].items()
    }
    for path in others:  # one at a time
        other = load_checkpoint(path)["state_dict"]
        if {n: x.shape for n, x in other.items()} != {n: x.shape for n, x in weights.items()}:
            raise CheckpointError(f"the checkpoint {path} is of another model than {newest}")
        for name, value in other.items():
            if value.is_floating_point():
                weights[name] += value
    checkpoint["state_dict"] = {
        name: (value / len(kept)).to(checkpoint["state_dict"][name].dtype)
        if torch.is_floating_point(value)
        else value
        for name, value in weights.items()
    }
    save_checkpoint(checkpoint, target)
