"""How strongly a memory writes: beta_t, and g_t = beta_t |k_t|^2, the share that is replaced.

Under the delta rule 1 - g_t is the eigenvalue of the state's transition along k_t: what was stored
under the key is kept at g = 0, replaced at g = 1, overshot above 1, turned to its opposite near 2
(eigenvalue -1, Grazzi et al. 2025, arXiv 2411.12537), and grows from g = 2 on.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fwlight.diagnostics.statistics import (
    LINEAR_EDGES,
    LOG_EDGES,
    OCTAVES,
    Statistics,
    binned,
    describe,
    merge,
    octave,
    per_head,
)
from fwlight.diagnostics.written import Written

TYPES = 50_000
"""Token types, counted from id 0, whose mean beta is followed."""
ROUNDING = 1e-6
"""By how much g exceeds 1 before that counts: unit-norm float32 keys are not exactly so."""
_EDGES = {"beta": LINEAR_EDGES, "g": LOG_EDGES}


class TokenBeta(NamedTuple):
    """Token types in order of their mean beta."""

    ids: Int[Tensor, " n"]
    mean: Float[Tensor, " n"]
    occurrences: Float[Tensor, " n"]


def beta_statistics(
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"] | None,
    *,
    padding_mask: Bool[Tensor, "b t"] | None = None,
) -> Statistics:
    """Return the statistics of beta and g by head: moments, histograms, fractions, by position.

    Args:
        k: Keys as written.
        beta: Write strengths; None is 1.
        padding_mask: True where a position is padding.
    """
    strength = torch.ones_like(k[..., 0]) if beta is None else beta
    strength = strength.double()
    g = strength * k.double().square().sum(-1)
    counted = torch.ones_like(strength, dtype=torch.bool)
    if padding_mask is not None:
        counted &= ~padding_mask[:, None]
    parts = []
    for name, x in (("beta", strength), ("g", g)):
        sums = {
            f"{name}/{label}": per_head((inside & counted).double())
            for label, inside in _ranges(name, x).items()
        }
        bins = octave(torch.arange(x.shape[2], device=x.device)).expand(x.shape)
        sums[f"{name}/position/count"] = binned(counted.double(), bins, OCTAVES)
        sums[f"{name}/position/sum"] = binned(torch.where(counted, x, 0.0), bins, OCTAVES)
        parts += [describe(name, x, counted, edges=_EDGES[name]), Statistics(sums, {})]
    return merge(*parts)


def beta_values(statistics: Statistics) -> dict[str, Tensor]:
    """Return what `summarise` does not; NaN where nothing was counted.

    As fractions `[H]` `beta/below_0.05`, `beta/above_0.95`, `g/below_0.05`, `g/near_1` (0.95 to
    1.05), `g/above_1` (overshoot), `g/near_2` (1.9 to 2: turning) and `g/from_2` (expanding);
    `beta/position_mean` and
    `g/position_mean` are `[H, OCTAVES]`.
    """
    values, sums = {}, statistics.sums
    for name in _EDGES:
        for label in _ranges(name, torch.zeros(0)):
            values[f"{name}/{label}"] = sums[f"{name}/{label}"] / sums[f"{name}/count"]
        total, count = sums[f"{name}/position/sum"], sums[f"{name}/position/count"]
        values[f"{name}/position_mean"] = total / count
    return values


def token_statistics(w: Written, *, n_types: int) -> Statistics:
    """Return count and sum of beta, averaged over heads, of every token type.

    Args:
        w: What is written, its tokens and write strengths known.
        n_types: Size of the vocabulary; only the first `TYPES` ids are followed.
    """
    assert w.beta is not None
    assert w.tokens is not None
    n_types = min(n_types, TYPES)
    counted = w.tokens < n_types
    if w.padding_mask is not None:
        counted &= ~w.padding_mask
    ids, mean = w.tokens[counted], w.beta.double().mean(1)[counted]
    zeros = mean.new_zeros(n_types)
    sums = {
        "tokens/count": zeros.index_add(0, ids, torch.ones_like(mean)),
        "tokens/sum": zeros.index_add(0, ids, mean),
    }
    return Statistics(sums, {})


def finalise_tokens(
    statistics: Statistics, n: int, *, min_count: int = 1
) -> tuple[TokenBeta, TokenBeta]:
    """Return up to `n` token types with the highest mean beta, and those with the lowest.

    Args:
        statistics: From `token_statistics`.
        n: How many of each.
        min_count: Occurrences below which a type is left out.
    """
    count, total = statistics.sums["tokens/count"], statistics.sums["tokens/sum"]
    ids = (count >= max(1, min_count)).nonzero().flatten()
    ids = ids[(total[ids] / count[ids]).argsort(descending=True, stable=True)]
    ranked = TokenBeta(ids, total[ids] / count[ids], count[ids])
    return TokenBeta(*(x[:n] for x in ranked)), TokenBeta(*(x.flip(0)[:n] for x in ranked))


def _ranges(name: str, x: Tensor) -> dict[str, Tensor]:
    if name == "beta":
        return {"below_0.05": x < 0.05, "above_0.95": x > 0.95}
    return {
        "below_0.05": x < 0.05,
        "near_1": (x >= 0.95) & (x <= 1.05),
        "above_1": x > 1 + ROUNDING,
        "near_2": (x >= 1.9) & (x <= 2 + ROUNDING),
        "from_2": x >= 2,
    }
