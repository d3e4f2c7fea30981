"""What the best linear memory could do with the same keys, and so who is to blame for an error."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.diagnostics.capacity import Clusters
from fwlight.diagnostics.statistics import Statistics, per_head

HEALTHY, RULE_LIMITED, OVER_CAPACITY = "healthy", "rule-limited", "over capacity"
UNUSED = "unused"
LIMIT = 0.05
"""Squared relative error above which a memory counts as failing."""


def best_errors(
    k: Float[Tensor, "b h t k"], v: Float[Tensor, "b h t v"], clusters: Clusters
) -> Float[Tensor, "b h"]:
    """Return |(I - K K^+) V|^2 over the last writes: the least error of any linear memory.

    Over their |V|^2 it is E_opt. Directions of K below 3e-7 of the largest, what float32 keys can
    tell from nothing, are taken as absent.
    """
    if k.shape[2] == 0:
        return k.new_zeros(k.shape[:2], dtype=torch.float64)
    keep = clusters.last[..., None]
    K, V = (torch.where(keep, x.double(), 0.0) for x in (k, v))
    wide = K.shape[2] < K.shape[3]
    energies, U = torch.linalg.eigh(K @ K.mT if wide else K.mT @ K)
    present = energies > 1e-13 * energies.amax(-1, keepdim=True).clamp(min=1e-300)
    if not wide:
        U = K @ U / torch.where(present, energies, 1.0).sqrt()[..., None, :]
    U = torch.where(present[..., None, :], U, 0.0)
    return (V - U @ (U.mT @ V)).square().sum((2, 3))


def best_statistics(
    k: Float[Tensor, "b h t k"], v: Float[Tensor, "b h t v"], clusters: Clusters
) -> Statistics:
    """Return the sums of E_opt over the batch."""
    size = torch.where(clusters.last, v.double().square().sum(-1), 0.0)
    sums = {"best/error": per_head(best_errors(k, v, clusters)), "best/size": per_head(size)}
    return Statistics(sums, {})


def best_error(statistics: Statistics) -> Float[Tensor, " h"]:
    """Return E_opt = |(I - K K^+) V|^2 / |V|^2 by head, a squared relative error."""
    return statistics.sums["best/error"] / statistics.sums["best/size"]


def verdicts(best: Float[Tensor, " h"], scaled_error: Float[Tensor, " h"]) -> list[str]:
    """Return the verdict of every head.

    Over capacity if E_opt is above `LIMIT`: no linear memory could hold these associations.
    Rule-limited if it is not, but the squared scaled error of the last writes is. Healthy if
    neither is; unused if nothing was written.

    Args:
        best: From `best_error`.
        scaled_error: `last/scaled_error` of `finalise_recall`.
    """
    result = []
    for b, s in zip(best.tolist(), scaled_error.square().tolist(), strict=True):
        if b != b or s != s:
            result.append(UNUSED)
        elif b > LIMIT:
            result.append(OVER_CAPACITY)
        else:
            result.append(RULE_LIMITED if s > LIMIT else HEALTHY)
    return result


def in_words(verdicts: Sequence[str], values: Mapping[str, Tensor]) -> str:
    """Return one line on a layer: its heads' verdicts, and the figures they rest on.

    Args:
        verdicts: One a head.
        values: Reported values of all heads pooled.
    """
    counts = Counter(verdicts)
    order = (OVER_CAPACITY, RULE_LIMITED, HEALTHY, UNUSED)
    heads = ", ".join(
        x if counts[x] == len(verdicts) else f"{x} {counts[x]}/{len(verdicts)}"
        for x in order
        if counts[x]
    )
    load, best, recall = (
        float(values[x]) for x in ("load/mean", "best/error", "last/scaled_error")
    )
    said = f"{heads}; load {load:.2f}, best possible error {best:.3f}, recall error {recall**2:.3f}"
    if "shrunk/mean" in values:  # of rules that project
        said += f", {float(values['shrunk/mean']):.0%} of writes shrunk"
    return said
