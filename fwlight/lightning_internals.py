"""All that leans on private names of Lightning, in one place: an upgrade breaks this file or none.

Lightning offers no public way to ask or to do any of it.
"""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from fwlight.errors import ConfigError

SubprocessScriptLauncher = _SubprocessScriptLauncher
share_threads = _set_num_threads_if_needed


def completes_update(trainer: Trainer) -> bool:
    """Whether the batch just made was the last of its update's accumulated ones."""
    return not trainer.fit_loop._should_accumulate()


def completes_epoch(trainer: Trainer) -> bool:
    """Whether the batch just made was the last of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def evaluates_now(trainer: Trainer) -> bool:
    """Whether an evaluation comes before the next step."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def stores_position(trainer: Trainer) -> bool:
    """Whether the training data says where it is, for a checkpoint."""
    loader = trainer.fit_loop._combined_loader
    return loader is not None and bool(loader._state_dicts())


def is_restoring(trainer: Trainer) -> bool:
    """Whether something of a loaded checkpoint is not given back yet."""
    loop = trainer.fit_loop
    waiting = loop._combined_loader is not None and loop._combined_loader_states_to_load
    return bool(trainer._checkpoint_connector._loaded_checkpoint or waiting)


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling signals: its SIGTERM saves nothing that resumes exactly.

    Its handler also broadcasts from within, which hangs if another rank is elsewhere.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def leave_out_of_synchronisation(module: LightningModule, names: list[str]) -> None:
    """Let an evaluation on several processes broadcast everything of a module but these names."""
    module._ddp_params_and_buffers_to_ignore = names  # pyright: ignore


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
    """Give a trainer an `UpdateLoop`."""
    old = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = UpdateLoop(trainer, old.min_steps, old.max_steps)
