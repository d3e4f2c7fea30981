"""Language modelling: predict the next token."""

from typing import cast

import torch
from torch import Tensor, nn

from fwlight.models import DecoderLM
from fwlight.training.metrics import TokenLoss
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, LMBatch


class LanguageModelingModule(TrainingModule):
    """Cross-entropy training and evaluation of any language model.

    Logs `train/{loss,ppl,lr,grad_norm}` at every logged step and `{val,test}/{loss,ppl}` after
    each evaluation, per token over all ranks and batches.

    Args:
        network: A model with `features(tokens) -> (hidden, state)` and `nll(hidden, targets)`, as
            `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
    """

    def __init__(self, network: nn.Module, *, optimizer: OptimizerConfig, max_steps: int) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.evaluation = TokenLoss()

    def forward(self, batch: LMBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`."""
        network = cast(DecoderLM, self.network)
        hidden, _ = network.features(batch.inputs)
        return network.nll(hidden, batch.targets)

    def training_step(self, batch: LMBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self.update_loss(
            self(batch).sum(dtype=torch.float64), (batch.targets != IGNORE_INDEX).sum()
        )

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        self.evaluation.reset()

    def validation_step(self, batch: LMBatch, batch_idx: int) -> None:
        """Add one batch."""
        self.evaluation.update(self(batch), batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Log what was added up."""
        self._report("val")

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        self.evaluation.reset()

    def test_step(self, batch: LMBatch, batch_idx: int) -> None:
        """Add one batch."""
        self.evaluation.update(self(batch), batch.targets)

    def on_test_epoch_end(self) -> None:
        """Log what was added up."""
        self._report("test")

    def _report(self, split: str) -> None:
        values = self.evaluation.compute()
        loss, ppl = torch.stack((values["loss"], values["ppl"])).tolist()
        self.record({f"{split}/loss": loss, f"{split}/ppl": ppl}, self.trainer.global_step)
        # For callbacks that watch a metric; every rank has the reduced value already.
        self.log(f"{split}/loss", loss, logger=False, sync_dist=True)
