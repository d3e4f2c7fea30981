"""Training of language models."""

from typing import cast

from torch import Tensor

from fwlight.models import DecoderLM
from fwlight.training.module import perplexity
from fwlight.training.supervised import SupervisedModule
from fwlight.types import LMBatch


class LanguageModelingModule(SupervisedModule):
    """Cross-entropy training and evaluation of any language model; also logs `{split}/ppl`.

    The network has `features(tokens) -> (hidden, state)` and `nll(hidden, targets)`, as
    `fwlight.models.DecoderLM`. Other arguments as in `SupervisedModule`.
    """

    def forward(self, batch: LMBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`."""
        network = cast(DecoderLM, self.network)
        hidden, _ = network.features(batch.inputs)
        return network.nll(hidden, batch.targets)

    def loss_metrics(self, split: str, loss: float) -> dict[str, float]:
        """Add the perplexity."""
        return {**super().loss_metrics(split, loss), f"{split}/ppl": perplexity(loss)}
