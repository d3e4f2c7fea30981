"""What a memory is worth: the loss of the whole model after a change of one memory alone.

Nothing is trained. A layer's memory is called as the model calls it, and once more as a change
would have it; what it returns then takes the place of what it returned, in all heads or in one, and
the loss of every target is compared. Effects are in nats per target: above 0 the change costs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwlight.diagnostics.changes import Call, changes
from fwlight.diagnostics.layers import Layer, memory_layers
from fwlight.evaluation import undisturbed
from fwlight.mixers.gates import NO_GATES
from fwlight.types import IGNORE_INDEX

LEAST = 1e-3
"""Nats per target below which an effect is none, however sure it is."""


class Effects(NamedTuple):
    """What changes of one layer's memory do to the loss, nats per target."""

    layer: Layer
    whole: dict[str, tuple[float, float]]
    """Effect and standard error over sequences of a change in all heads, by its name."""
    heads: list[dict[str, tuple[float, float]]]
    """The same of a change in one head alone."""


def intervene(
    module: Any,
    batches: Iterable[Any],
    *,
    layers: Sequence[Layer] | None = None,
    heads: bool = True,
) -> list[Effects]:
    """Return the effects of all changes of all memories that a forward pass calls once.

    The changes, each of which is made where the memory has what it changes:

        mean              what the memory returns is its mean over tokens and sequences
        empty_<n>         the memory is emptied before every n-th token: 1, 2, 4, ...
        no_superseded     writes to a key that was written again since were never made
        last_<n>          nor were any but the last n: 4, 16, 64, ...
        beta_<x>, g_1     all writes have strength x, or beta |k|^2 = 1
        linear            reads come from the best linear memory of the associations not superseded
        nearest, softmax  reads come from an unlimited one: see `fwlight.diagnostics.replacements`

    The last two rows are `rescaled` to the memory's own reads; the ridge of `linear` and the
    temperature of `softmax` are those of `fwlight.diagnostics.changes` with the least loss of the
    whole layer on the first batch. Sums that a layer divides its reads by are emptied, and lose
    writes, as the memory does. Softmax attention knows the first two. What is left out: removals
    where a rule's keys depend on earlier ones (read_norm=full) or sequences are long, and, where a
    token writes several times, all replacements.

    Args:
        module: Whose `module(batch)` is the loss `[b, t]` of every target, as of
            `fwlight.training.lm.LanguageModelingModule`.
        batches: With `targets`; others are left out.
        layers: Those whose memories are changed; None is `memory_layers` of its network.
        heads: Whether heads are changed one by one, too; of those whose `mean` costs nothing on the
            first batch no other change is tried.

    Returns:
        Nothing for less than two sequences, which have no standard error.
    """
    layers = memory_layers(module.network) if layers is None else layers
    sums: dict[str, dict[str, Tensor]] = {layer.name: {} for layer in layers}
    totals = torch.zeros(3, dtype=torch.float64)
    chosen: dict[str, dict[str, str]] = {}
    active: dict[str, list[int]] = {}
    with undisturbed(module.network):
        for batch in batches:
            if not hasattr(batch, "targets"):  # agents have none
                continue
            calls, nll = _watched(module, layers, batch)
            if not calls:
                continue
            counts = (batch.targets != IGNORE_INDEX).sum(1).double()
            totals += torch.stack([counts.sum(), counts.square().sum(), (counts > 0).sum()]).cpu()
            for i, layer in enumerate(layers):
                if layer.name not in calls:
                    continue
                before = [(x, calls[x.name]) for x in layers[:i] if x.name in calls]
                run = _Run(module, batch, nll, counts, layer, calls[layer.name], before)
                run.add(sums[layer.name], chosen, active, heads=heads)
    if float(totals[2]) < 2:
        return []
    return [_effects(layer, sums[layer.name], totals) for layer in layers if sums[layer.name]]


class _Run:
    """The changes of one layer on one batch."""

    def __init__(
        self,
        module: Any,
        batch: Any,
        nll: Tensor,
        counts: Tensor,
        layer: Layer,
        call: Call,
        before: Sequence[tuple[Layer, Call]],
    ) -> None:
        self._module, self._batch, self._nll, self._counts = module, batch, nll, counts
        self._layer, self._call, self._before = layer, call, before

    def add(
        self,
        sums: dict[str, Tensor],
        chosen: dict[str, dict[str, str]],
        active: dict[str, list[int]],
        *,
        heads: bool,
    ) -> None:
        """Add what every change does, to the first row in all heads, below by head."""
        name, n_heads = self._layer.name, self._call.output.shape[1]
        first = name not in chosen
        picked = chosen.setdefault(name, {})
        for group, options in changes(self._layer, self._call):
            if not first and group in picked:
                options = {x: y for x, y in options.items() if x == picked[group]}
            outputs = {x: y().to(self._call.output.dtype) for x, y in options.items()}
            found = {x: self._difference(output) for x, output in outputs.items()}
            best = min(found, key=lambda x: float(found[x][0].nan_to_num(math.inf)))
            picked[group] = best
            rows = [found[best]]
            tried = active.get(name, range(n_heads)) if heads else []
            for head in range(n_heads):
                output = self._call.output.clone()
                output[:, head] = outputs[best][:, head]
                nothing = torch.full_like(rows[0], torch.nan)
                rows.append(self._difference(output) if head in tried else nothing)
            sums[group] = sums[group] + torch.stack(rows) if group in sums else torch.stack(rows)
            if first and group == "mean" and heads:
                totals = torch.stack([self._counts.sum(), self._counts.square().sum()])
                totals = torch.cat([totals, (self._counts > 0).sum()[None]]).cpu()
                costs = [_mean_and_error(row, totals) for row in sums["mean"][1:]]
                active[name] = [i for i, (effect, _) in enumerate(costs) if effect > LEAST]

    def _difference(self, output: Tensor) -> Tensor:
        """Return the sums over sequences of d, d^2 and d n: d is what n targets lose."""
        with _returning([*self._before, (self._layer, self._call._replace(output=output))]):
            nll = self._module(self._batch)
        d = (nll.double() - self._nll.double()).sum(1)
        return torch.stack([d.sum(), d.square().sum(), (d * self._counts).sum()]).cpu()


def is_above_noise(effect: float, error: float) -> bool:
    """Whether an effect is at least `LEAST` and two standard errors."""
    return effect > max(LEAST, 2 * error)


def _watched(module: Any, layers: Sequence[Layer], batch: Any) -> tuple[dict[str, Call], Tensor]:
    """Run the module; return how it called the memories that it called once, and the losses."""
    calls: dict[str, list[Call | None]] = {layer.name: [] for layer in layers}

    def recording(layer: Layer, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(q: Tensor, k: Tensor, v: Tensor, gates: Any = NO_GATES, **options: Any) -> Any:
            output, state = own(q, k, v, gates, **options)
            plain = options.get("initial_state") is None and options.get("padding_mask") is None
            call = Call(q, k, v, gates, options.get("starts"), output, state)
            calls[layer.name].append(call if plain else None)
            return output, state

        return forward

    try:
        for layer in layers:
            layer.memory.forward = recording(layer, layer.memory.forward)
        nll = module(batch)
    finally:
        for layer in layers:
            del layer.memory.forward  # the class has its own
    if nll.ndim != 2 or nll.shape != batch.targets.shape:
        return {}, nll
    once = {name: made[0] for name, made in calls.items() if len(made) == 1}
    return {name: call for name, call in once.items() if call is not None}, nll


@contextmanager
def _returning(calls: Sequence[tuple[Layer, Call]]) -> Iterator[None]:
    """Let memories return what is given instead of what they would."""
    try:
        for layer, call in calls:
            layer.memory.forward = lambda *_, call=call, **__: (call.output, call.state)
        yield
    finally:
        for layer, _ in calls:
            del layer.memory.forward


def _effects(layer: Layer, sums: dict[str, Tensor], totals: Tensor) -> Effects:
    rows = {name: [_mean_and_error(row, totals) for row in x] for name, x in sums.items()}
    whole = {name: x[0] for name, x in rows.items()}
    n_heads = len(next(iter(rows.values()))) - 1
    heads = [{name: x[1 + i] for name, x in rows.items()} for i in range(n_heads)]
    known = [{name: y for name, y in x.items() if not math.isnan(y[0])} for x in heads]
    # Of a head that the first batch alone found of no use nothing else is known.
    lost = [0 < len(x) < len(whole) and is_above_noise(*x["mean"]) for x in known]
    known = [{} if missing else x for missing, x in zip(lost, known, strict=True)]
    return Effects(layer, whole, known)


def _mean_and_error(sums: Tensor, totals: Tensor) -> tuple[float, float]:
    """Return the effect per target and its standard error, that of a ratio of sums over sequences.

    Args:
        sums: Over sequences of d, d^2 and d n.
        totals: Of n, n^2 and 1.
    """
    (d, squares, products), (n, n_squares, sequences) = sums.tolist(), totals.tolist()
    if not n:
        return math.nan, math.nan
    mean = d / n
    spread = max(0.0, squares - 2 * mean * products + mean**2 * n_squares)
    if sequences < 2:
        return mean, math.inf
    return mean, math.sqrt(spread * sequences / (sequences - 1)) / n
