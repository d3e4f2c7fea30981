"""When training evaluates and ends: after whole updates, counted in updates."""

import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from fwlight.errors import ConfigError


class UpdateLoop(_TrainingEpochLoop):
    """Lightning's loop, which counts `val_check_interval` in batches, with updates instead.

    An update of k accumulated batches is never cut: not by an evaluation, whose weights would be
    those of the update before, nor by a time limit that runs out in it. An interval that is no
    whole number (a share of an epoch, a time) means what it means to Lightning.
    """

    @property
    def done(self) -> bool:
        """Whether to leave the loop; not between two batches of an update."""
        return super().done and not self._should_accumulate()

    def on_run_start(self, data_fetcher: Any) -> None:
        """Begin an epoch; refuse an interval within epochs that none of them reaches.

        Raises:
            ConfigError: Naming both numbers.
        """
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        updates = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if (
            trainer.check_val_every_n_epoch is not None
            and trainer.enable_validation
            and isinstance(trainer.val_check_interval, int)
            and trainer.val_check_interval > updates
        ):
            raise ConfigError(
                f"trainer.val_check_interval={trainer.val_check_interval} is more than the "
                f"{updates} updates of an epoch; lower it, or count across epochs with "
                "trainer.check_val_every_n_epoch=null"
            )

    def advance(self, data_fetcher: Any) -> None:
        """Make a batch, unless the epoch that training goes on in was at its end already.

        Lightning knows that only where an evaluation is due, not where a time limit or the last
        step brought one about, and would make a batch too many in that epoch.
        """
        over = self.restarting and self.restarted_on_last and self._num_ready_batches_reached()
        if not over or self._should_check_val_fx(data_fetcher):
            super().advance(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        if self._should_accumulate():
            return False
        interval = self.trainer.val_check_interval
        stops = self.trainer.should_stop and self.trainer.fit_loop._can_stop_early
        if stops or not isinstance(interval, int) or not self._should_check_val_epoch():
            return super()._should_check_val_fx(data_fetcher)
        updates = self.global_step
        if self.trainer.check_val_every_n_epoch is not None:
            updates = self.automatic_optimization.optim_progress.optimizer.step.current.completed
        return updates > 0 and updates % interval == 0


def count_updates(trainer: Trainer) -> None:
    """Give a trainer an `UpdateLoop`; it offers no public way to count anything but batches."""
    old = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = UpdateLoop(trainer, old.min_steps, old.max_steps)
