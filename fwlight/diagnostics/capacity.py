"""How many different keys a memory was given, and how far they are from each other."""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.norms import effective_rank
from fwlight.diagnostics.statistics import (
    LINEAR_EDGES,
    LOG_EDGES,
    Statistics,
    describe,
    merge,
    written,
)

TAU = 0.95
"""Cosine from which two keys count as the same."""


class Clusters(NamedTuple):
    """Which writes went to the same key; positions that write nothing belong to no cluster."""

    written: Bool[Tensor, "b h t"]
    """No padding, and the key is not zero."""
    unit_keys: Float[Tensor, "b h t k"]
    """k / |k|, zero where nothing is written."""
    cosine: Float[Tensor, "b h t s"]
    """Cosines of all pairs of keys."""
    same: Bool[Tensor, "b h t s"]
    """cos(k_t, k_s) >= tau, every written key with itself too."""
    last: Bool[Tensor, "b h t"]
    """No later write has the same key: what the memory should still know."""
    weight: Float[Tensor, "b h t"]
    """1 / |{s : same}|, so that a cluster counts once however often it was written."""
    different: Float[Tensor, "b h"]
    """N_tau, the sum of the weights: the number of different keys."""


def cluster_keys(
    k: Float[Tensor, "b h t k"],
    *,
    padding_mask: Bool[Tensor, "b t"] | None = None,
    tau: float = TAU,
) -> Clusters:
    """Compare every key with every other of its sequence; O(T^2 K) a head.

    Args:
        k: Keys as written.
        padding_mask: True where a position is padding.
        tau: Cosine from which two keys count as the same.
    """
    writes = written(k, padding_mask)
    unit = F.normalize(torch.where(writes[..., None], k.double(), 0.0), dim=-1, eps=1e-300)
    cosine = unit @ unit.mT
    same = (cosine >= tau) & writes[..., :, None] & writes[..., None, :]
    last = writes & ~same.triu(1).any(-1)
    weight = torch.where(writes, 1.0 / same.sum(-1).clamp(min=1).double(), 0.0)
    return Clusters(writes, unit, cosine, same, last, weight, weight.sum(-1))


def crosstalk(k: Float[Tensor, "b h t k"], clusters: Clusters) -> Float[Tensor, "b h t"]:
    """Return sum_{other clusters} |k_s . k_t| / |k_t|^2, every cluster counted once.

    What a read with k_t picks up of all other keys, relative to its own, if the values written
    under them all pointed the same way.
    """
    size = torch.where(clusters.written, k.double().square().sum(-1).sqrt(), 0.0)
    others = torch.where(clusters.same, 0.0, clusters.cosine.abs())
    total = (others @ (clusters.weight * size)[..., None]).squeeze(-1)
    return total / torch.where(clusters.written, size, 1.0)


def capacity_statistics(k: Float[Tensor, "b h t k"], clusters: Clusters) -> Statistics:
    """Return the statistics of load, utilisation and interference.

    - load: N_tau / d_dot of every sequence; N_tau is not bounded by d_dot.
    - position_load: writes / d_dot, repeated keys and all.
    - utilisation: `effective_rank` of the unit-norm keys over d_dot, at most 1: how evenly the
      space is used, not whether it overflows.
    - interference: |cos| of every pair of writes with different keys.
    - crosstalk: of every write.

    Args:
        k: Keys as written.
        clusters: What `cluster_keys` says of them.
    """
    d_dot = k.shape[-1]
    used = clusters.written.any(-1)
    i, j = torch.triu_indices(k.shape[2], k.shape[2], 1, device=k.device)
    apart = clusters.written[..., i] & clusters.written[..., j] & ~clusters.same[..., i, j]
    return merge(
        describe("load", clusters.different / d_dot, used),
        describe("position_load", clusters.written.sum(-1).double() / d_dot, used),
        describe("utilisation", effective_rank(clusters.unit_keys) / d_dot, used),
        describe("interference", clusters.cosine[..., i, j].abs(), apart, edges=LINEAR_EDGES),
        describe("crosstalk", crosstalk(k, clusters), clusters.written, edges=LOG_EDGES),
    )


@cache
def random_interference(d_dot: int) -> tuple[float, float]:
    """Return mean and 95th percentile of |cos| of two random directions in d_dot dimensions.

    The angle has density sin^(d-2), so the mean is Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)); the
    percentile is read off the integral on a grid.
    """
    if d_dot == 1:
        return 1.0, 1.0
    mean = math.exp(math.lgamma(d_dot / 2) - math.lgamma((d_dot + 1) / 2)) / math.sqrt(math.pi)
    angle = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * (math.pi / 2)
    below = angle.sin().pow(d_dot - 2).cumsum(0)
    # Small angles are large cosines: the 95th percentile has 5 % of the angles below it.
    return mean, float(angle[torch.searchsorted(below, 0.05 * below[-1])].cos())
