"""How long a run has worked, over all its resumptions."""

import time
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from fwlight.training.module import TrainingModule


class RunClock(Callback):
    """Counts wall and training seconds and target tokens; stored with every checkpoint.

    Training seconds leave out evaluation, so tokens / training seconds is the training speed.
    A time limit (`max_time`) is that of one start: what is used up of it is not stored.
    """

    def __init__(self) -> None:
        self._earlier = {"wall_seconds": 0.0, "train_seconds": 0.0, "tokens": 0}
        self._started: float | None = None
        self._evaluating_since: float | None = None
        self._evaluation_seconds = 0.0
        self._module: TrainingModule | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._started, self._evaluation_seconds = time.monotonic(), 0.0
        self._module = cast(TrainingModule, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the training seconds."""
        self._evaluating_since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        if self._evaluating_since is not None:
            self._evaluation_seconds += time.monotonic() - self._evaluating_since
            self._evaluating_since = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self._earlier = self.state_dict()
        self._started = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out the time that is used up."""
        checkpoint["callbacks"].pop(Timer().state_key, None)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Begin with a whole budget, also where an earlier version stored it."""
        self.on_save_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Seconds and tokens so far."""
        state = dict(self._earlier)
        if self._started is None or self._module is None:
            return state
        now = time.monotonic()
        paused = self._evaluation_seconds
        if self._evaluating_since is not None:
            paused += now - self._evaluating_since
        state["wall_seconds"] += now - self._started
        state["train_seconds"] += now - self._started - paused
        state["tokens"] += int(self._module.tokens_seen)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self._earlier = dict(state_dict)
