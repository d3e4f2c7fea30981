"""Loss, perplexity and reward over a whole data set, and the loss by its position."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, float64, zeros
from torch.nn import Module
from torchmetrics import Metric

from fwlight.types import IGNORE_INDEX

_RANGES = 32
"""Of positions, each twice as long as the one before: more than any sequence has."""


class ExactMetric(Metric):
    """A metric whose sums keep their types, whatever the types of the weights become."""

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(lambda x: fn(x).to(x.dtype), exclude_state)


class TokenLoss(ExactMetric):
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

    def update(self, nll: Float[Tensor, "*n"], targets: Int[Tensor, "*n"]) -> None:
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


class PositionLoss(ExactMetric):
    """Mean negative log-likelihood by position: of 1, 2, 3 to 4, 5 to 8, ... in the sequence.

    Counted as in `TokenLoss`. Beyond the trained length the curve says whether a memory goes on.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    longest: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "tokens"):
            self.add_state(name, zeros(_RANGES, dtype=float64), dist_reduce_fx="sum")
        self.add_state("longest", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, nll: Float[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> None:
        """Add a batch; arguments as in `TokenLoss.update`."""
        counted = targets != IGNORE_INDEX
        ends = 2 ** torch.arange(_RANGES, device=nll.device)
        of_position = torch.arange(1, nll.shape[1] + 1, device=nll.device)
        of_range = torch.bucketize(of_position, ends)
        losses = nll.detach().masked_fill(~counted, 0).sum(0, dtype=float64)
        self.nll.index_add_(0, of_range, losses)
        self.tokens.index_add_(0, of_range, counted.sum(0, dtype=float64))
        asked = of_position.masked_fill(~counted.any(0), 0)
        self.longest = torch.maximum(self.longest, asked.max())

    def compute(self) -> dict[str, Tensor]:
        """Return `loss_position_<n>` for each range that has targets, n being its last position."""
        ends = [min(2**k, int(self.longest)) for k in range(_RANGES)]
        return {
            f"loss_position_{end}": nll / tokens
            for end, nll, tokens in zip(ends, self.nll, self.tokens, strict=True)
            if tokens
        }


class MeanReward(ExactMetric):
    """Mean reward of an episode, over all batches and ranks, summed in float64."""

    full_state_update = False
    total: Tensor
    episodes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", zeros((), dtype=float64), dist_reduce_fx="sum")
        self.add_state("episodes", zeros((), dtype=float64), dist_reduce_fx="sum")

    def update(self, rewards: Float[Tensor, " b"]) -> None:
        """Add the sums of the rewards of some episodes."""
        self.total += rewards.sum(dtype=float64)
        self.episodes += len(rewards)

    def compute(self) -> Tensor:
        """Return the mean, a float64 scalar; NaN without episodes."""
        return self.total / self.episodes


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
