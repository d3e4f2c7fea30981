"""State tracking: answers by the length of the sequence, scaled by what a guess has right."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fwlight.training.answers import AnswerModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import LMBatch


class StateTrackingModule(AnswerModule):
    """Trains on answers, and logs accuracies by length beside the loss.

    `{val,test}/{acc,acc_length_<n>,acc_beyond}`, n being the end of a range of lengths and beyond
    what is longer than trained; each also as `scaled_acc`, which is (acc - chance) / (1 - chance)
    with the `chance` of the data module: 0 for a guess, 1 for all (Grazzi et al. 2025, arXiv
    2411.12537).

    Args:
        network: As `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        test_lengths: The ends of the ranges of lengths, growing.
        trained: The longest length of the training.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        test_lengths: Sequence[int],
        trained: int,
    ) -> None:
        kinds = [f"length_{n}" for n in test_lengths]
        beyond = [f"length_{n}" for n in test_lengths if n > trained]
        super().__init__(
            network,
            optimizer=optimizer,
            max_steps=max_steps,
            kinds=kinds,
            unions={"beyond": beyond} if beyond else {},
        )
        self.test_lengths = tuple(test_lengths)
        scaled = (f"val/scaled_{name}" for name in self.accuracy.names)
        self.monitored = (*self.monitored, *scaled)

    def kinds_of(self, batch: LMBatch) -> Int[Tensor, " b"]:
        """A row's tokens are those that are not 0."""
        ends = batch.inputs.new_tensor(self.test_lengths)
        return torch.bucketize((batch.inputs != 0).sum(1), ends)

    def answer_metrics(self) -> dict[str, float]:
        """Add the scaled accuracies."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        found, chance = super().answer_metrics(), data.chance
        scaled = {f"scaled_{name}": (acc - chance) / (1 - chance) for name, acc in found.items()}
        return {**found, **scaled}
