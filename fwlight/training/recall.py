"""Associative recall: language modelling whose few targets are answers to queries."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor, nn

from fwlight.training.answers import AnswerModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, LMBatch


class RecallModule(AnswerModule):
    """Trains on answers, and logs `{val,test}/{acc,acc_pairs_<n>}` beside the loss.

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
        kinds = [f"pairs_{n}" for n in n_pairs]
        super().__init__(network, optimizer=optimizer, max_steps=max_steps, kinds=kinds)
        self.n_pairs = tuple(n_pairs)

    def kinds_of(self, batch: LMBatch) -> Int[Tensor, " b"]:
        """A sequence asks for every pair once."""
        counts = (batch.targets != IGNORE_INDEX).sum(1)
        matches = counts[:, None] == counts.new_tensor(self.n_pairs)
        return matches.long().argmax(1).masked_fill(~matches.any(1), -1)
