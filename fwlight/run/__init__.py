"""One run: its folder, checkpoints, resuming, random state, logs and actions."""

import logging
import warnings
from typing import Any

from lightning import Callback

from fwlight.run.actions import Restored
from fwlight.run.actions.fitting import check_goes_on, fit
from fwlight.run.agreement import SameStart
from fwlight.run.allocator import keep_freed_memory
from fwlight.run.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from fwlight.run.checkpointing import RunCheckpoint
from fwlight.run.clock import RunClock
from fwlight.run.denormals import flushing_denormals
from fwlight.run.errors import exit_code_and_line
from fwlight.run.files import write_atomically
from fwlight.run.folder import RunFolder, note_failure
from fwlight.run.loggers import build_loggers, closing
from fwlight.run.moving_average import MovingAverage, averaged
from fwlight.run.profiling import profiler
from fwlight.run.ranks import conclude, end_at_once, environment, leave, strategy
from fwlight.run.rehearsal import Rehearsal
from fwlight.run.restoring import load_weights
from fwlight.run.rng import RandomState
from fwlight.run.signals import StopOnSignal, listening
from fwlight.run.text import as_json

__all__ = [
    "AtomicCheckpointIO",
    "Restored",
    "RunFolder",
    "SameStart",
    "as_json",
    "averaged",
    "build_loggers",
    "check_goes_on",
    "closing",
    "conclude",
    "end_at_once",
    "environment",
    "exit_code_and_line",
    "fit",
    "flushing_denormals",
    "keep_freed_memory",
    "leave",
    "listening",
    "load_checkpoint",
    "load_weights",
    "note_failure",
    "plugins",
    "profiler",
    "quiet",
    "run_callbacks",
    "strategy",
    "write_atomically",
]


def plugins() -> list[Any]:
    """Return the plug-ins every Trainer of a run needs."""
    return [AtomicCheckpointIO(), *environment()]


def run_callbacks(
    folder: RunFolder,
    *,
    seed: int,
    every_n_train_steps: int | None,
    keep_every_n_train_steps: int | None = None,
    save_best: bool = True,
    monitor: str = "val/loss",
    keep_best: int = 1,
    average_last: int | None = None,
    identity: dict[str, Any],
) -> list[Callback]:
    """Return the callbacks every run needs; they come after all others in the Trainer's list.

    Args:
        folder: Where checkpoints go.
        seed: Seed of the random numbers drawn in training.
        every_n_train_steps: Updates between two writes of `last.ckpt`; None or 0: at the end only.
        keep_every_n_train_steps: Updates between two copies that are kept, or None.
        save_best: Whether the best evaluation's state is kept, and tested.
        monitor: What best means, see `RunCheckpoint`.
        keep_best: How many of the best evaluations' states are kept.
        average_last: Test the average of so many kept copies instead.
        identity: Plain containers that say what was trained; stored as `fwlight`.
    """
    # The order matters: random state and weights are back in place before a checkpoint stores them.
    checkpoint = RunCheckpoint(
        folder.checkpoints,
        every_n_train_steps=every_n_train_steps,
        keep_every_n_train_steps=keep_every_n_train_steps,
        save_best=save_best,
        monitor=monitor,
        keep_best=keep_best,
        average_last=average_last,
        identity=identity,
    )
    same = SameStart(identity=identity, step=folder.resume_step)
    return [
        *(same, Rehearsal(), RunClock(), RandomState(seed=seed), MovingAverage()),
        *(checkpoint, StopOnSignal(checkpoint)),
    ]


def quiet() -> None:
    """Hide Lightning's notices of what is as intended here; warnings of substance stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*is smaller than the logging interval.*",  # sizes are the configuration's
        ".*`srun` command is available.*",  # having SLURM is no wish to use it
        ".*does not have many workers.*",  # the loaders are no DataLoaders
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own code
    ):
        warnings.filterwarnings("ignore", message=message)
