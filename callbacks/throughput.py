"""How fast training is."""

import time
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from fwlight.training import TrainingModule


class Throughput(Callback):
    """Logs `throughput/tokens_per_second`: target tokens over all ranks, evaluation left out.

    A value is the mean over the steps since the one before; it is logged where the training
    metrics are, when the device is read anyway.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._tokens = 0.0
        self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        module = cast(TrainingModule, pl_module)
        self._since, self._tokens = time.monotonic(), float(module.tokens_seen)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it run on."""
        self._since += time.monotonic() - self._paused

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the speed where a log is due."""
        module = cast(TrainingModule, pl_module)
        step = trainer.global_step
        if not module.logs_at(step) or trainer.fit_loop._should_accumulate():
            return
        now, tokens = time.monotonic(), float(module.tokens_seen)
        if now > self._since:
            speed = (tokens - self._tokens) / (now - self._since)
            module.record({"throughput/tokens_per_second": speed}, step)
        self._since, self._tokens = now, tokens
