"""When checkpoints are written."""

import math
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from fwlight.errors import ConfigError
from fwlight.integrity import damaged
from fwlight.lightning_internals import (
    completes_epoch,
    completes_update,
    evaluates_now,
    stores_position,
)
from fwlight.run.checkpoint_form import check_callbacks
from fwlight.run.restoring import check_loops
from fwlight.runs.reading import lower_is_better
from fwlight.training.module import TrainingModule


class RunCheckpoint(Callback):
    """Writes `last.ckpt`, kept copies and `best.ckpt`.

    A step at which an evaluation is due is saved after it: a checkpoint from before would make
    Lightning skip that evaluation on resume. The last step is always evaluated and saved.

    Args:
        folder: Where to.
        every_n_train_steps: Updates between two writes of `last.ckpt`; None or 0: at the end only.
        keep_every_n_train_steps: Updates between two copies named `step-000100.ckpt`, or None.
        save_best: Whether `best.ckpt` is written.
        identity: Stored in every checkpoint as `fwlight`.
        monitor: The metric whose best value makes `best.ckpt`: of losses and `val/bpb` the
            smallest, of others the largest.
        keep_best: How many of the best evaluations' states are kept: above 1, each of them is a
            copy named `best-000100.ckpt` beside `best.ckpt`.
        average_last: Average the weights of so many kept copies at the end into `averaged.ckpt`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_n_train_steps: int | None,
        keep_every_n_train_steps: int | None = None,
        save_best: bool = True,
        identity: dict[str, Any],
        monitor: str = "val/loss",
        keep_best: int = 1,
        average_last: int | None = None,
    ) -> None:
        self.folder = folder
        self.every_n_train_steps = every_n_train_steps
        self.keep_every_n_train_steps = keep_every_n_train_steps
        self.save_best = save_best
        self.identity = identity
        self.monitor, self.average_last = monitor, average_last
        self.keep_best = keep_best
        self.best: dict[str, Any] = {}
        """`value` and `step` of the best evaluation so far; empty before the first."""
        self.kept: list[tuple[float, int]] = []
        """Of every kept copy of a best evaluation, best first: the value to minimise, the step."""
        self._saved_step = -1
        self._no_position = False

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold what is counted to this training; see `check_loops`."""
        check_loops(trainer, checkpoint)
        self._no_position = "combined_loader" not in checkpoint["loops"]["fit_loop"]["state_dict"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to begin the data anew where a checkpoint should say how far it was read."""
        if self._no_position and stores_position(trainer):
            error = ValueError("it has no position in the data")
            raise damaged(Path(trainer.ckpt_path or ""), error)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if due, unless an evaluation comes first."""
        if not completes_update(trainer):
            return
        if _is_last_step(trainer):
            # Lightning evaluates once more where it is told to stop, though not at max_steps.
            trainer.should_stop, trainer.fit_loop.min_epochs = True, 0
        if not evaluates_now(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best, and what was put off."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = cast(TrainingModule, pl_module).latest.get(self.monitor)
        sign = 1 if lower_is_better(self.monitor) else -1
        if value is not None and sign * value < sign * self.best.get("value", sign * float("inf")):
            self.best = {"value": value, "step": trainer.global_step}
            if self.save_best:
                self._save(trainer, self.best_path)
        if self.save_best and self.keep_best > 1 and value is not None and not math.isnan(value):
            self._keep_if_among_best(trainer, sign * value)
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state if it is not saved yet."""
        self.save_unless_saved(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what was trained.

        Raises:
            ConfigError: A callback keeps what no reader of checkpoints takes.
        """
        try:
            check_callbacks(checkpoint["callbacks"])
        except ValueError as error:
            raise ConfigError(
                f"a checkpoint cannot hold what a callback keeps, {error}: let its state_dict "
                "return numbers, text, tensors, lists and mappings"
            ) from error
        checkpoint["fwlight"] = self.identity

    def state_dict(self) -> dict[str, Any]:
        """The best evaluations so far."""
        return {"best": dict(self.best), "kept": list(self.kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best = dict(state_dict["best"])
        self.kept = [(value, step) for value, step in state_dict.get("kept", [])]

    def save_unless_saved(self, trainer: Trainer) -> None:
        """Write `last.ckpt` if it is not this step's already."""
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if _divides(self.keep_every_n_train_steps, step):
            self._save(trainer, self.folder / f"step-{step:06d}.ckpt")
        if _divides(self.every_n_train_steps, step) or trainer.should_stop:
            self._save_last(trainer)

    def _keep_if_among_best(self, trainer: Trainer, value: float) -> None:
        """Copy this step's state if it is one of the best, then drop what no longer is."""
        step = trainer.global_step
        ranked = sorted([*self.kept, (value, step)])
        self.kept, dropped = ranked[: self.keep_best], ranked[self.keep_best :]
        if (value, step) in self.kept:
            self._save(trainer, self._kept_path(step))
        for _, old in dropped:
            if old != step:
                trainer.strategy.remove_checkpoint(self._kept_path(old))

    def _kept_path(self, step: int) -> Path:
        return self.folder / f"best-{step:06d}.ckpt"

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, self.last_path)
        self._saved_step = trainer.global_step

    @staticmethod
    def _save(trainer: Trainer, path: Path) -> None:
        # A run resumed from here logs on after this step: what was logged until now must be there.
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(path)


def _divides(interval: int | None, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _is_last_step(trainer: Trainer) -> bool:
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    epochs = trainer.max_epochs
    if epochs is None or epochs == -1:
        return False
    return completes_epoch(trainer) and trainer.current_epoch + 1 >= epochs
