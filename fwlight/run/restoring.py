"""Going on from a checkpoint: its counters are held to those that the trainer keeps."""

from collections.abc import Mapping
from typing import Any

import lightning
from lightning import Trainer


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
