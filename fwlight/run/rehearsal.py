"""What would end a run after its training is tried before it."""

from lightning import Callback, LightningModule, Trainer

from fwlight.evaluation import undisturbed
from fwlight.sharding import gathered
from fwlight.training.module import TrainingModule


class Rehearsal(Callback):
    """Evaluates one batch of each later evaluation at the start of training, and forgets it.

    Whatever such a batch or its loader raises is raised hours earlier so. Weights, buffers and
    random numbers stay as they are, nothing is logged, no rank waits for another.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try them; trainer.limit_test_batches may be so small a share that it is none."""
        trainer.testing = True
        try:
            trainer.test_loop.setup_data()
        finally:
            trainer.training = True
        # Lightning sets it where pyright does not see it.
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        limits = (trainer.limit_val_batches, trainer.limit_test_batches)
        loaders = (data.val_dataloader, data.test_dataloader)
        for limit, loader in zip(limits, loaders, strict=True):
            if limit != 0 and isinstance(pl_module, TrainingModule):
                self._try(trainer, pl_module, next(iter(loader()), None))

    @staticmethod
    def _try(trainer: Trainer, module: TrainingModule, batch: object) -> None:
        if batch is None:
            return
        precision = trainer.precision_plugin.val_step_context()
        with gathered(module), undisturbed(module), precision:
            module.rehearse(trainer.strategy.batch_to_device(batch))
