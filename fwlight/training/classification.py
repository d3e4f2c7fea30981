"""Classification of images: cross-entropy, and the share of right answers."""

import torch.nn.functional as F
from torch import Tensor, nn

from fwlight.training.answers import AnswerAccuracy
from fwlight.training.optim import OptimizerConfig
from fwlight.training.supervised import SupervisedModule
from fwlight.types import IGNORE_INDEX, ImageBatch


class ClassificationModule(SupervisedModule):
    """Trains on the class of an image, and logs `{val,test}/acc` beside the loss.

    Args:
        network: Makes logits of pixels in [0, 1].
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
    """

    monitored = ("val/loss", "val/acc")

    def __init__(self, network: nn.Module, *, optimizer: OptimizerConfig, max_steps: int) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.accuracy = AnswerAccuracy(())

    def forward(self, batch: ImageBatch) -> Tensor:
        """Negative log-likelihood `[B]` of every class; 0 where it is `IGNORE_INDEX`."""
        return _nll(self.logits(batch), batch.targets)

    def logits(self, batch: ImageBatch) -> Tensor:
        """Return `[B, N]` of all classes."""
        return self.network(batch.images / 255)

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        super().on_validation_epoch_start()
        self.accuracy.reset()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        super().on_test_epoch_start()
        self.accuracy.reset()

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def _evaluate(self, batch: ImageBatch) -> None:
        logits, targets = self.logits(batch), batch.targets
        self.evaluation.update(_nll(logits, targets), targets)
        kinds = targets.new_zeros(len(targets))
        self.accuracy.update(logits.argmax(-1)[:, None], targets[:, None], kinds)

    def _report(self, split: str) -> None:
        accuracy = self.accuracy.compute()["acc"].item()
        self.record({f"{split}/acc": accuracy}, self.trainer.global_step)
        super()._report(split)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
