"""What a memory still knows: its reads against the values that were written."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fwlight.diagnostics.capacity import Clusters
from fwlight.diagnostics.statistics import (
    OCTAVES,
    Statistics,
    binned,
    octave,
)

AXES = ("age", "keys")


class Recall(NamedTuple):
    """Reads compared with the values they should have returned, squared and not yet divided."""

    counted: Bool[Tensor, "b h n"]
    """Which reads count."""
    error: Float[Tensor, "b h n"]
    """|r - v|^2."""
    scaled_error: Float[Tensor, "b h n"]
    """|a r - v|^2 with one least-squares a for every head and sequence."""
    mean_error: Float[Tensor, "b h n"]
    """|mean v - v|^2: what answering with the mean value would cost."""
    size: Float[Tensor, "b h n"]
    """|v|^2, what reading zero would cost."""
    identified: Float[Tensor, "b h n"]
    """1 where the value nearest in cosine is one written under that key."""
    chance: Float[Tensor, "b h n"]
    """The share of written values with which that is so."""
    age: Int[Tensor, "b h n"]
    """Positions since the association was written: 0 for the last of the sequence."""


def read_state(
    q: Float[Tensor, "b h n k"],
    S: Float[Tensor, "b h k v"],
    *,
    key_sum: Float[Tensor, "b h k"] | None = None,
    eps: float = 0.0,
) -> Float[Tensor, "b h n v"]:
    """Return S^T q, divided by z . q + eps where the layer's read_norm keeps a sum of keys z."""
    q, S = q.double(), S.double()
    reads = q @ S
    if key_sum is None:
        return reads
    divisor = q @ key_sum.double()[..., None] + eps
    # A query orthogonal to every key reads zero, not 0 / 0.
    return reads / torch.where(divisor == 0, 1.0, divisor)


def recall(
    reads: Float[Tensor, "b h n v"],
    v: Float[Tensor, "b h t v"],
    clusters: Clusters,
    *,
    targets: Int[Tensor, "b h n"] | None = None,
    counted: Bool[Tensor, "b h n"] | None = None,
) -> Recall:
    """Compare what a memory returns after its last write with what was written.

    Args:
        reads: What it returns; by default for the written keys, in order.
        v: Values.
        clusters: Of the keys, from `cluster_keys`.
        targets: The write that every read should return, from `nearest_writes`; None is its own.
        counted: Which reads count, the scale and the mean value being theirs; None is the last
            write of every cluster. With `clusters.written & ~clusters.last` these are superseded
            writes, of which forgetting is wanted.
    """
    if targets is None:
        targets = torch.arange(v.shape[2], device=v.device).expand(clusters.last.shape)
    if counted is None:
        counted = clusters.last
    reads = torch.where(counted[..., None], reads.double(), 0.0)
    v = torch.where(clusters.written[..., None], v.double(), 0.0)
    wanted = v.gather(2, targets[..., None].expand(*targets.shape, v.shape[3]))
    wanted = torch.where(counted[..., None], wanted, 0.0)
    energy = reads.square().sum((2, 3))
    scale = (reads * wanted).sum((2, 3)) / torch.where(energy > 0, energy, 1.0)
    mean = wanted.sum(2) / counted.sum(2).clamp(min=1)[..., None]
    identified, chance = _identify(reads, v, clusters, targets)
    last_position = (clusters.written.flip(2).cumsum(2) > 0).sum(2) - 1
    return Recall(
        counted,
        (reads - wanted).square().sum(-1),
        (scale[..., None, None] * reads - wanted).square().sum(-1),
        (mean[:, :, None] - wanted).square().sum(-1),
        wanted.square().sum(-1),
        identified,
        chance,
        (last_position[..., None] - targets).clamp(min=0),
    )


def nearest_writes(q: Float[Tensor, "b h n k"], clusters: Clusters) -> Int[Tensor, "b h n"]:
    """Return for every query the last write of the key nearest to it in cosine.

    It makes the model's own queries comparable: what they address is what they should return.
    Without any key there is nothing to return: the result is 0.
    """
    if clusters.last.shape[2] == 0:
        return torch.zeros(q.shape[:3], dtype=torch.long, device=q.device)
    cosine = F.normalize(q.double(), dim=-1, eps=1e-300) @ clusters.unit_keys.mT
    return torch.where(clusters.last[:, :, None], cosine, -torch.inf).argmax(-1)


def recall_statistics(name: str, outcome: Recall, clusters: Clusters) -> Statistics:
    """Return the sums of every quantity of `Recall` by head and octave `[H, OCTAVES]`.

    Octaves are those of the age ("age") and of the number of different keys ("keys").

    Args:
        name: Of these reads, such as "last", "superseded" or "queries".
        outcome: From `recall`.
        clusters: Of the keys.
    """
    keys = clusters.different.round().long()[..., None].expand(outcome.age.shape)
    sums = {}
    for axis, x in zip(AXES, (outcome.age, keys), strict=True):
        for quantity in ("counted", *_QUANTITIES):
            samples = torch.where(outcome.counted, getattr(outcome, quantity).double(), 0.0)
            sums[f"{name}/{axis}/{quantity}"] = binned(samples, octave(x), OCTAVES)
    return Statistics(sums, {})


def finalise_recall(statistics: Statistics, name: str) -> dict[str, Tensor]:
    """Return the reported values of reads called `name`; NaN where nothing was counted.

    `name/error`, `/scaled_error`, `/mean_error` (the baseline of the mean value; reading zero has
    1) are root mean square errors relative to the values, sqrt(sum |r - v|^2 / sum |v|^2);
    `/identified` and `/chance` are rates. All are `[H]`; `name/age/error` and so on are the
    same by age, `name/keys/error` by number of different keys, `[H, OCTAVES]`.
    """
    values = {}
    for axis in AXES:
        sums = {x: statistics.sums[f"{name}/{axis}/{x}"] for x in ("counted", *_QUANTITIES)}
        values |= {f"{name}/{axis}/{x}": y for x, y in _ratios(sums).items()}
        if axis == AXES[0]:
            totals = {x: y.sum(-1) for x, y in sums.items()}
            values |= {f"{name}/{x}": y for x, y in _ratios(totals).items()}
    return values


_ERRORS = ("error", "scaled_error", "mean_error")
_RATES = ("identified", "chance")
_QUANTITIES = (*_ERRORS, "size", *_RATES)


def _ratios(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    errors = {x: (sums[x] / sums["size"]).sqrt() for x in _ERRORS}
    return errors | {x: sums[x] / sums["counted"] for x in _RATES}


def _identify(
    reads: Tensor, v: Tensor, clusters: Clusters, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return whether the nearest value is right, and the share of values that are."""
    n, t = targets.shape[2], v.shape[2]
    if t == 0:
        return reads.new_zeros(targets.shape), reads.new_zeros(targets.shape)
    unit = F.normalize(v, dim=-1, eps=1e-300)
    # Equal values are one candidate: each is known by its first occurrence.
    equal = (unit @ unit.mT >= 1 - 1e-9) | torch.eye(t, dtype=torch.bool, device=v.device)
    ids = equal.byte().argmax(-1)[:, :, None]
    under_key = clusters.same.gather(2, targets[..., None].expand(*targets.shape, t)).double()
    ids = ids.expand(-1, -1, n, -1)
    right = torch.zeros_like(under_key).scatter_add(3, ids, under_key).gather(3, ids) > 0
    candidates = clusters.written[:, :, None]
    cosine = torch.where(candidates, reads @ unit.mT, -torch.inf)
    found = right.gather(3, cosine.argmax(-1, keepdim=True)).squeeze(-1)
    found &= (reads != 0).any(-1)
    chance = (right & candidates).sum(-1) / candidates.sum(-1).clamp(min=1)
    return found.double(), chance.double()
