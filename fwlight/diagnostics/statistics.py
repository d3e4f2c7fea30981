"""Sufficient statistics: what two batches, or two processes, can add without losing anything.

Everything is float64 with one row a head. Sums are added and maxima compared; means, deviations and
percentiles are made of them at the end only, so that they are those of the whole.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LINEAR_EDGES = torch.linspace(0, 2, 401, dtype=torch.float64)
"""Histogram edges of what lies in [0, 2]: write strengths, |cos|."""
LOG_EDGES = torch.logspace(-8, 8, 641, dtype=torch.float64)
"""Histogram edges of positive numbers of any size: a bin is 6 % wide."""
OCTAVES = 24
"""Bins of positions and ages: 0, 1, 2-3, 4-7 and so on; the last takes all above 4 million."""
PERCENTILES = (5, 50, 95)


class Statistics(NamedTuple):
    """Named sufficient statistics; the names say of what, after a slash which."""

    sums: dict[str, Tensor]
    """Counts, sums, sums of squares, histogram counts: to be added over shards."""
    maxima: dict[str, Tensor]
    """Largest values, and largest negated values (-min): the larger over shards counts."""


def merge(*parts: Statistics) -> Statistics:
    """Return the statistics of the union of several shards, or of several quantities."""
    sums: dict[str, Tensor] = {}
    maxima: dict[str, Tensor] = {}
    for part in parts:
        for name, x in part.sums.items():
            sums[name] = sums[name] + x if name in sums else x
        for name, x in part.maxima.items():
            maxima[name] = torch.maximum(maxima[name], x) if name in maxima else x
    return Statistics(sums, maxima)


def describe(
    name: str,
    x: Float[Tensor, "b h *n"],
    counted: Bool[Tensor, "b h *n"] | None = None,
    *,
    edges: Float[Tensor, " e"] | None = None,
) -> Statistics:
    """Return count, sum, sum of squares, extrema and, given `edges`, a histogram of every head.

    Args:
        name: Of the quantity.
        x: Its samples.
        counted: Which of them count; None is all. The others are not read.
        edges: `LINEAR_EDGES` or `LOG_EDGES`; there is a bin below the first and one above the last.
    """
    x = x.double()
    if counted is None:
        counted = torch.ones_like(x, dtype=torch.bool)
    zeroed = torch.where(counted, x, 0.0)
    sums = {
        f"{name}/count": per_head(counted.double()),
        f"{name}/sum": per_head(zeroed),
        f"{name}/sum_of_squares": per_head(zeroed.square()),
    }
    if edges is not None:
        bins = torch.bucketize(zeroed.contiguous(), edges.to(x.device), right=True)
        sums[f"{name}/histogram"] = binned(counted.double(), bins, len(edges) + 1)
    maxima = {
        f"{name}/max": _largest(torch.where(counted, x, -torch.inf)),
        f"{name}/-min": _largest(torch.where(counted, -x, -torch.inf)),
    }
    return Statistics(sums, maxima)


def summarise(statistics: Statistics) -> dict[str, Tensor]:
    """Return mean, std (of the population), min, max and, of histograms, p5, p50 and p95.

    Of every quantity that was described, `[H]` each, named `name/mean` and so on; NaN where nothing
    was counted.
    """
    sums, maxima = statistics
    values = {}
    for name in [x.removesuffix("/-min") for x in maxima if x.endswith("/-min")]:
        count, mean = sums[f"{name}/count"], sums[f"{name}/sum"] / sums[f"{name}/count"]
        variance = sums[f"{name}/sum_of_squares"] / count - mean.square()
        low, high = (
            torch.where(count > 0, x, torch.nan)
            for x in (-maxima[f"{name}/-min"], maxima[f"{name}/max"])
        )
        found = {"mean": mean, "std": variance.clamp(min=0).sqrt(), "min": low, "max": high}
        if (histogram := sums.get(f"{name}/histogram")) is not None:
            edges = next(x for x in (LINEAR_EDGES, LOG_EDGES) if len(x) + 1 == histogram.shape[1])
            for percent in PERCENTILES:
                found[f"p{percent}"] = percentile(histogram, percent / 100, edges, low, high)
        values |= {f"{name}/{key}": value for key, value in found.items()}
    return values


def percentile(
    histogram: Float[Tensor, "h n"],
    fraction: float,
    edges: Float[Tensor, " e"],
    low: Float[Tensor, " h"],
    high: Float[Tensor, " h"],
) -> Float[Tensor, " h"]:
    """Return the value below which `fraction` of the samples lie, right within a bin's width.

    Samples count as evenly spread over their bin, of which no more than [low, high] is used.
    """
    edges = edges.to(histogram)[None].expand(len(histogram), -1)
    edges = torch.cat([low[:, None], edges, high[:, None]], dim=1)
    edges = torch.maximum(torch.minimum(edges, high[:, None]), low[:, None])
    below = histogram.cumsum(1)
    wanted = fraction * below[:, -1:]
    i = torch.searchsorted(below, wanted).clamp(max=histogram.shape[1] - 1)
    inside = histogram.gather(1, i)
    share = (wanted - below.gather(1, i) + inside) / inside.clamp(min=1)
    left, right = edges.gather(1, i), edges.gather(1, i + 1)
    return (left + share * (right - left)).squeeze(1)


def octave(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Return the bin of a position or age: 0, 1, 2-3, 4-7, ... are bins 0, 1, 2, 3, ..."""
    return torch.frexp(x.double()).exponent.long().clamp(0, OCTAVES - 1)


def binned(
    x: Float[Tensor, "b h *n"], bins: Int[Tensor, "b h *n"], n_bins: int
) -> Float[Tensor, "h {n_bins}"]:
    """Return the sums of x over samples by head and bin."""
    by_head = [y.expand(x.shape).transpose(0, 1).flatten(1) for y in (x, bins)]
    return x.new_zeros(x.shape[1], n_bins).scatter_add(1, by_head[1], by_head[0])


def per_head(x: Float[Tensor, "b h *n"]) -> Float[Tensor, " h"]:
    """Return the sum over everything but the head."""
    return x.transpose(0, 1).flatten(1).sum(1)


def written(
    k: Float[Tensor, "b h t k"], padding_mask: Bool[Tensor, "b t"] | None
) -> Bool[Tensor, "b h t"]:
    """Say which positions write: those that are no padding and whose key is not zero."""
    nonzero = (k != 0).any(-1)
    return nonzero if padding_mask is None else nonzero & ~padding_mask[:, None]


def _largest(x: Tensor) -> Tensor:
    x = x.transpose(0, 1).flatten(1)
    # Of nothing there is no largest; -inf is what every other value replaces.
    return torch.cat([x, x.new_full((len(x), 1), -torch.inf)], dim=1).amax(1)
