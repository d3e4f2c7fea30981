"""The loss of a language model on what stood in its context already, and on what did not.

A target is an associative-recall hit (Zoology, Arora et al. 2023, arXiv 2312.04927, sec. 3.1) if
the token before it and it have followed each other earlier in what the model sees. Zoology counts
only those that are rare in training; here they are told apart by how often training has them.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, float64, zeros

from fwlight.packing import begins_at
from fwlight.training.metrics import ExactMetric
from fwlight.types import IGNORE_INDEX, CarriedBatch, LMBatch, PackedBatch

OCTAVES, DECADES = 32, 10
_SIZES = {"loss_ar_hit": 1, "loss_other": 1, "ar_hit_distance": OCTAVES, "ar_hit_between": OCTAVES}
_SIZES |= {"ar_hit_count": DECADES, "other_count": DECADES}
_FIRST = dict(zip(_SIZES, torch.tensor([0, *_SIZES.values()]).cumsum(0).tolist(), strict=False))
_TOKENS = 2**18
"""Tokens that are looked at together: few calls, a few megabytes."""


class Earlier(NamedTuple):
    """What stood before every target."""

    hit: Bool[Tensor, "b t"]
    """Whether the token before it and it have followed each other earlier in the sequence."""
    distance: Int[Tensor, "b t"]
    """How many tokens ago that token last stood before that target, from 1 on; where it is one."""
    between: Int[Tensor, "b t"]
    """How many different tokens were read since that target was, it included; likewise."""


def earlier_bigrams(
    inputs: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], first: Int[Tensor, "b t"]
) -> Earlier:
    """Find for every target x_{t+1} the last s < t with x_s = x_t and x_{s+1} = x_{t+1}.

    Args:
        inputs: Token ids x_0 .. x_{T-1}.
        targets: x_1 .. x_T; `IGNORE_INDEX` where nothing is to be predicted.
        first: From which place in the row on each position sees.
    """
    following = torch.cat([inputs[:, 1:], targets[:, -1:]], dim=1)
    following = torch.where(targets != IGNORE_INDEX, targets, following)
    base = int(inputs.max()) + 1 if inputs.numel() else 1
    base = max(base, int(following.max()) + 1) if inputs.numel() else base
    codes = torch.where(following >= 0, inputs * base + following, -1)
    places = _last_before(codes)
    hit = (targets != IGNORE_INDEX) & (places >= first) & (places >= 0)
    distance = torch.arange(inputs.shape[1], device=inputs.device) - places
    between = torch.zeros_like(distance)
    rows, ends = hit.nonzero(as_tuple=True)
    between[rows, ends] = _different(inputs, rows, places[rows, ends], ends)
    return Earlier(hit, distance, between)


class HitLoss(ExactMetric):
    """Mean negative log-likelihood of hits and of other targets, and of hits by what lies between.

    Counted in float64 over batches and ranks, as in `TokenLoss`. What one lane reads over several
    batches is looked at when its last one has come.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", zeros(sum(_SIZES.values()), 2, dtype=float64), dist_reduce_fx="sum")
        self._kept: list[tuple[Tensor, ...]] = []
        self._of: Any = None
        self.counts: tuple[Tensor, Tensor, int] | None = None
        """Bigrams `first * base + second`, rising, how often training has each, and base."""

    def reset(self) -> None:
        """Start from nothing."""
        super().reset()
        self._kept, self._of = [], None

    def update(
        self, nll: Float[Tensor, "b t"], batch: LMBatch | PackedBatch | CarriedBatch
    ) -> None:
        """Add a batch; nll is -log p(target) in nats, not read where nothing is asked."""
        carried = isinstance(batch, CarriedBatch)
        documents = None if isinstance(batch, LMBatch) else batch.documents
        # Lanes go on in time, other rows lie side by side.
        of = (carried, documents is None, len(nll) if carried else nll.shape[1])
        full = not carried and sum(x[0].numel() for x in self._kept) > _TOKENS
        if of != self._of or full or (carried and batch.begins):
            self.finish()
        self._of = of
        kept = (batch.inputs, batch.targets, nll.detach())
        self._kept.append(kept if documents is None else (*kept, documents))

    def finish(self) -> None:
        """Look at what was kept; to be called before `compute`."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        joined = [torch.cat(x, dim=int(self._of[0])) for x in zip(*kept, strict=True)]
        lanes = max(1, _TOKENS // joined[0].shape[1])
        for part in zip(*(x.split(lanes) for x in joined), strict=True):
            self._look(*part)

    def _look(
        self, inputs: Tensor, targets: Tensor, nll: Tensor, documents: Tensor | None = None
    ) -> None:
        first = torch.zeros_like(inputs) if documents is None else begins_at(documents).clamp(min=0)
        found, asked = earlier_bigrams(inputs, targets, first), targets != IGNORE_INDEX
        other = asked & ~found.hit
        self._add("loss_ar_hit", found.hit, nll)
        self._add("loss_other", other, nll)
        ends = 2 ** torch.arange(OCTAVES, device=nll.device)
        for name, x in (("distance", found.distance), ("between", found.between)):
            self._add(f"ar_hit_{name}", found.hit, nll, torch.bucketize(x[found.hit], ends))
        if self.counts is not None:
            counts = self._counts(inputs, targets)
            for name, counted in (("ar_hit_count", found.hit), ("other_count", other)):
                ends = 10 ** torch.arange(DECADES, device=nll.device) - 1
                self._add(name, counted, nll, torch.bucketize(counts[counted], ends))

    def compute(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the main values, and those of curves, in nats per target; no 0/0 among them.

        `loss_ar_hit` and `loss_other`. Curves: `ar_hits`, the share of targets that are hits;
        `ar_hit_distance_<n>`, `ar_hit_between_<n>` by the octave of `Earlier` that ends in n;
        `ar_hit_count_<n>`, `other_count_<n>` by the decade of their bigram's count in training that
        ends in n, 0 being those that training does not have.
        """
        sums, main, curves = self.sums.tolist(), {}, {}
        (_, hits), (_, others) = sums[:2]
        if hits + others:
            curves["ar_hits"] = hits / (hits + others)
        for name, size in _SIZES.items():
            rows = sums[_FIRST[name] : _FIRST[name] + size]
            for i, (nll, n) in enumerate(rows):
                end = 10**i - 1 if name.endswith("count") else 2**i
                if n and size == 1:
                    main[name] = nll / n
                elif n:
                    curves[f"{name}_{end}"] = nll / n
        return main, curves

    def _add(self, name: str, counted: Tensor, nll: Tensor, rows: Tensor | None = None) -> None:
        losses = nll[counted].double()
        rows = torch.zeros_like(losses, dtype=torch.long) if rows is None else rows
        added = torch.stack([losses, torch.ones_like(losses)], dim=1)
        self.sums.index_add_(0, rows.clamp(max=_SIZES[name] - 1) + _FIRST[name], added)

    def _counts(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return how often training has every target's bigram; never one that is not known."""
        assert self.counts is not None
        known, counts, base = self.counts
        codes = inputs * base + targets
        places = torch.searchsorted(known, codes).clamp(max=max(len(known) - 1, 0))
        if not len(known):
            return torch.zeros_like(codes)
        return torch.where(known[places] == codes, counts[places], 0)


def _last_before(x: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return the last earlier place in the row at which the same stands; -1 if there is none."""
    ordered, order = x.sort(dim=1, stable=True)
    before = order[:, :-1].masked_fill(ordered[:, 1:] != ordered[:, :-1], -1)
    return order.scatter(1, order, F.pad(before, (1, 0), value=-1))


def _different(
    x: Int[Tensor, "b t"], rows: Int[Tensor, " n"], after: Int[Tensor, " n"], to: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Count the different ones among x[rows, after + 1 .. to], a pass for every bit of the length.

    They are those whose last earlier place is `after` or before. Among the first `to` + 1 of the
    row's places, counted bit by bit as in a wavelet matrix (Claude et al. 2015), all up to `after`
    are so too.
    """
    values, length = _last_before(x) + 1, x.shape[1]
    low, high, limit = torch.zeros_like(to), to + 1, after + 2
    found = -(after + 1)
    for bit in reversed(range(length.bit_length())):
        ones = (values >> bit) & 1
        zeros_before = F.pad((1 - ones).cumsum(1), (1, 0))
        zeros_low, zeros_high = zeros_before[rows, low], zeros_before[rows, high]
        upper = (limit >> bit) & 1 > 0
        found = found + torch.where(upper, zeros_high - zeros_low, 0)
        middle = zeros_before[:, -1:]
        places = torch.arange(length, device=x.device)
        order = torch.where(ones > 0, middle + places - zeros_before[:, :-1], zeros_before[:, :-1])
        values = values.scatter(1, order, values)
        low = torch.where(upper, middle[rows, 0] + low - zeros_low, zeros_low)
        high = torch.where(upper, middle[rows, 0] + high - zeros_high, zeros_high)
    return found
