"""Going on from a checkpoint: its weights, and its counters held to those that a trainer keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from fwlight.errors import CheckpointError
from fwlight.integrity import damaged
from fwlight.sharding import laid_out_as, whole


def check_loops(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Hold the counters of a training to those that this trainer keeps.

    Raises:
        ValueError: They have other names, or count other updates than the checkpoint has.
        LookupError: They have no such count.
    """
    stored = checkpoint["loops"]["fit_loop"]
    if checkpoint["pytorch-lightning_version"] == lightning.__version__:
        _check_kinds(stored, trainer.fit_loop.state_dict(), "loops.fit_loop")
    loop = "epoch_loop.{}_optimization.{}"
    counters = (
        stored[loop.format("automatic", "optim_progress")]["optimizer"]["step"],
        stored[loop.format("manual", "optim_step_progress")],
    )
    if sum(counter["total"]["completed"] for counter in counters) != checkpoint["global_step"]:
        raise ValueError("its loops count other updates than its global_step")


def load_weights(module: LightningModule, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a module; of one that is sharded, every rank its share.

    Raises:
        CheckpointError: They are not this model's, or infinite.
    """
    now = module.state_dict()
    weights = {
        name: laid_out_as(x, now[name]) if name in now else x
        for name, x in checkpoint["state_dict"].items()
    }
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"the checkpoint {path} is of another model ({reason[0].strip()})"
        ) from error
    for name, parameter in module.named_parameters():
        if not whole(parameter).isfinite().all():
            raise damaged(Path(path), ValueError(f"its {name} is not finite"))


def stopped_early(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Say whether an EarlyStopping ended the training that a checkpoint is from."""
    # Lightning sets the list where pyright does not see it.
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        state = checkpoint["callbacks"].get(callback.state_key)
        if isinstance(callback, EarlyStopping) and state is not None:
            goal, last = callback.stopping_threshold, checkpoint["metrics"].get(callback.monitor)
            reached = None not in (goal, last) and callback.monitor_op(torch.tensor(last), goal)
            if reached or state["wait_count"] >= callback.patience:
                return True
    return False


def epochs_made(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a training has behind it, the one counted whose last batch is made."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    ends = epochs["ready"] > epochs["processed"] and batches["is_last_batch"]
    return epochs["processed"] + ends


def _check_kinds(stored: Any, fresh: Any, where: str) -> None:
    """Compare names and types of nested mappings, but for the loaders', which are not made yet."""
    if type(stored) is not type(fresh):
        raise ValueError(f"its {where} is not that of a training")
    if not isinstance(stored, dict):
        return
    for name in (stored.keys() | fresh.keys()) - {"combined_loader"}:
        if not (name in stored and name in fresh):
            raise ValueError(f"its {where}.{name} is not that of a training")
        _check_kinds(stored[name], fresh[name], f"{where}.{name}")
