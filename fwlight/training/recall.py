"""Associative recall: language modelling whose few targets are answers to queries."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics import Metric

from fwlight.models import DecoderLM
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, CarriedBatch, LMBatch


class RecallAccuracy(Metric):
    """Share of targets that are predicted, over all and by the number of targets of a sequence.

    Counts are added over batches and ranks, so the result is exact.

    Args:
        n_pairs: The numbers of targets that a sequence may have; others but 0 are not expected.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor

    def __init__(self, n_pairs: Sequence[int]) -> None:
        super().__init__()
        self.n_pairs = tuple(n_pairs)
        for name in ("right", "asked"):
            zeros = torch.zeros(len(self.n_pairs), dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, predictions: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> None:
        """Add a batch; predictions are not read where the target is `IGNORE_INDEX`."""
        asked = targets != IGNORE_INDEX
        counts = asked.sum(1)
        of_slice = (counts == counts.new_tensor(self.n_pairs)[:, None]).long()  # [slices, b]
        self.right += (of_slice * ((predictions == targets) & asked).sum(1)).sum(1)
        self.asked += (of_slice * counts).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Return `acc` and one `acc_pairs_<n>` for each number, float64; NaN without targets."""
        names = ["acc", *(f"acc_pairs_{n}" for n in self.n_pairs)]
        right, asked = (torch.cat([x.sum()[None], x]).double() for x in (self.right, self.asked))
        return dict(zip(names, right / asked, strict=True))


class RecallModule(LanguageModelingModule):
    """Trains as for language modelling, and logs `{val,test}/{acc,acc_pairs_<n>}` beside the loss.

    Only positions with a target pass the output layer.

    Args:
        network: As `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        n_pairs: The numbers of pairs in the data.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        n_pairs: Sequence[int],
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.accuracy = RecallAccuracy(n_pairs)

    def forward(self, batch: LMBatch | CarriedBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`."""
        return self._nll(batch, self._hidden(batch))

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        super().on_validation_epoch_start()
        self.accuracy.reset()

    def validation_step(self, batch: LMBatch, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        super().on_test_epoch_start()
        self.accuracy.reset()

    def test_step(self, batch: LMBatch, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def _hidden(self, batch: LMBatch | CarriedBatch) -> Tensor:
        """Return the hidden states of the asked positions `[1, N, d_model]`."""
        hidden, _ = cast(DecoderLM, self.network).features(batch.inputs)
        return hidden[batch.targets != IGNORE_INDEX][None]

    def _nll(self, batch: LMBatch | CarriedBatch, hidden: Tensor) -> Tensor:
        asked = batch.targets != IGNORE_INDEX
        nll = cast(DecoderLM, self.network).nll(hidden, batch.targets[asked][None])
        return nll.new_zeros(asked.shape).masked_scatter(asked, nll)

    def _evaluate(self, batch: LMBatch) -> None:
        hidden = self._hidden(batch)
        self.evaluation.update(self._nll(batch, hidden), batch.targets)
        answers = cast(DecoderLM, self.network).output(hidden).argmax(-1)
        predictions = torch.full_like(batch.targets, IGNORE_INDEX)
        asked = batch.targets != IGNORE_INDEX
        self.accuracy.update(predictions.masked_scatter(asked, answers), batch.targets)

    def _report(self, split: str) -> None:
        accuracy = {f"{split}/{k}": v.item() for k, v in self.accuracy.compute().items()}
        self.record(accuracy, self.trainer.global_step)
        super()._report(split)
