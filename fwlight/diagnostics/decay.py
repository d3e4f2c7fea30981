"""How fast a memory forgets: the factors exp(decay_t) on what is stored, and their half-life."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.statistics import LINEAR_EDGES, Statistics, describe, merge, summarise


def decay_statistics(
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"],
    *,
    padding_mask: Bool[Tensor, "b t"] | None = None,
) -> Statistics:
    """Return the statistics of exp(decay) by head, over tokens and key channels.

    Args:
        decay: Logarithms, at most 0.
        padding_mask: True where a position is padding.
    """
    kept = (decay if decay.ndim == 4 else decay[..., None]).double()
    counted = torch.ones_like(kept, dtype=torch.bool)
    if padding_mask is not None:
        counted &= ~padding_mask[:, None, :, None]
    # A token that empties the memory is a boundary, not a rate.
    rates = counted & kept.isfinite()
    return merge(
        describe("decay", kept.exp(), counted, edges=LINEAR_EDGES),
        describe("decay/log", kept, rates),
    )


def finalise_decay(statistics: Statistics) -> dict[str, Tensor]:
    """Return mean, std, min, max and percentiles of the factor, and `decay/half_life`, by head.

    The half-life is that of the mean decay, ln 2 / |mean(decay_t)|: after so many tokens half of
    what was stored is left; infinite without decay. NaN where nothing was counted.
    """
    values = summarise(statistics, "decay", edges=LINEAR_EDGES)
    sums = statistics.sums
    mean = sums["decay/log/sum"] / sums["decay/log/count"]
    values["decay/half_life"] = math.log(2) / mean.abs()
    return values
