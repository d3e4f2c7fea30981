"""How fast a memory forgets: the factors exp(decay_t) on what is stored, and their half-life."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.statistics import LINEAR_EDGES, Statistics, describe, merge


def decay_statistics(
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"],
    *,
    padding_mask: Bool[Tensor, "b t"] | None = None,
) -> Statistics:
    """Return the statistics of exp(decay) and decay by head, over tokens and key channels.

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


def half_life(decay: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return ln 2 / |decay|: after so many tokens half of what was stored is left."""
    return math.log(2) / decay.abs()
