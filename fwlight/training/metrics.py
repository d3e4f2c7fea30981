"""Loss and perplexity over every target token of a data set."""

from jaxtyping import Float, Int
from torch import Tensor, float64, zeros
from torchmetrics import Metric

from fwlight.types import IGNORE_INDEX


class TokenLoss(Metric):
    """Mean negative log-likelihood per target token, and its exponential.

    The sums are kept in float64 and added over batches and ranks, so the result is the mean over
    all tokens and never a mean of means.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", zeros((), dtype=float64), dist_reduce_fx="sum")
        self.add_state("tokens", zeros((), dtype=float64), dist_reduce_fx="sum")

    def update(self, nll: Float[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> None:
        """Add a batch.

        Args:
            nll: -log p(target) in nats; not read where the target is `IGNORE_INDEX`.
            targets: Token ids.
        """
        counted = targets != IGNORE_INDEX
        self.nll += nll.detach().masked_fill(~counted, 0).sum(dtype=float64)
        self.tokens += counted.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` (nats per token), `ppl` = exp(loss) and `tokens`, all float64 scalars.

        Without a single token, loss and perplexity are NaN.
        """
        loss = self.nll / self.tokens
        return {"loss": loss, "ppl": loss.exp(), "tokens": self.tokens}
