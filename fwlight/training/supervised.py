"""What the LightningModules share that compare an output with a target at every position."""

from typing import Any

import torch
from torch import Tensor, nn

from fwlight.training.metrics import TokenLoss
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX


class SupervisedModule(TrainingModule):
    """Training and evaluation on a loss per target; subclasses say which, in `forward`.

    A batch has `targets`, and `forward(batch)` returns a loss of the same shape, 0 where the target
    is `IGNORE_INDEX`. Logs `train/{loss,lr,grad_norm}` at every logged step and `{val,test}/loss`
    after each evaluation, means per target over all ranks and batches.

    Args:
        network: What is trained.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
    """

    def __init__(self, network: nn.Module, *, optimizer: OptimizerConfig, max_steps: int) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.evaluation = TokenLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self.update_loss(
            self.losses(batch).sum(dtype=torch.float64), (batch.targets != IGNORE_INDEX).sum()
        )

    def losses(self, batch: Any) -> Tensor:
        """Return `forward(batch)`; a subclass may let a batch go on where the last one ended."""
        # A call of the module within a step would gather sharded weights once more.
        return self.forward(batch)

    def rehearse(self, batch: Any) -> None:
        """Take the losses of one batch, and drop them."""
        self.losses(batch)

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        self.evaluation.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch."""
        self.evaluation.update(self.losses(batch), batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Log what was added up."""
        self._report("val")

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        self.evaluation.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch."""
        self.evaluation.update(self.losses(batch), batch.targets)

    def on_test_epoch_end(self) -> None:
        """Log what was added up."""
        self._report("test")

    def _report(self, split: str) -> None:
        loss = self.evaluation.compute()["loss"].item()
        self.record(self.loss_metrics(split, loss), self.trainer.global_step)
        # For callbacks that watch a metric; every rank has the reduced value already.
        self.log(f"{split}/loss", loss, logger=False, sync_dist=True)
