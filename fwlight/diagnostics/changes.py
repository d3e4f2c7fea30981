"""What a memory would return after a change of its write strengths, its past, or its kind."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fwlight.diagnostics.layers import Layer, Observer
from fwlight.diagnostics.replacements import (
    latest,
    linear_reads,
    nearest_reads,
    reads_without,
    rescaled,
    softmax_reads,
)
from fwlight.diagnostics.written import Written
from fwlight.mixers.gates import takes
from fwlight.packing import begins_at

RIDGES = (1e-6, 1e-3, 1e-1, 1.0)
TEMPERATURES = (1.0, 0.3, 0.1, 0.03)
STRENGTHS = (0.5, 1.0, 2.0)
_MOST_WRITES = 2**21
"""Of `reads_without`; beyond, nothing is removed exactly."""
_MOST_PAIRS = 2**26
"""Of tokens of one sequence and head; beyond, nothing is removed and no read replaced."""


class Call(NamedTuple):
    """How the model called a memory in one forward pass, and what it got."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Any
    starts: Tensor | None
    output: Tensor
    """By heads `[b, h, t, v]`."""
    state: Any


def changes(layer: Layer, call: Call) -> Iterator[tuple[str, dict[str, Callable[[], Tensor]]]]:
    """Yield every change's name and what the memory returns then, one of which is the best."""
    length, memory = call.k.shape[2] // layer.memory.writes, layer.memory
    yield "mean", {"": lambda: call.output.mean((0, 2), keepdim=True).expand_as(call.output)}
    if layer.is_softmax or any(takes(memory.update_rule, x) for x in ("decay", "empties")):
        for n in (2**i for i in range((length - 1).bit_length())):
            yield f"empty_{n}", {"": lambda n=n: _called(memory, call, every=n)}
    if layer.is_softmax:
        return
    if call.gates.beta is not None:
        for x in STRENGTHS:
            beta = torch.full_like(call.gates.beta, x)
            yield f"beta_{x:g}", {"": lambda beta=beta: _called(memory, call, beta=beta)}
        size = memory.keys(call.k)[0].square().sum(-1)
        beta = torch.where(size > 0, 1 / size.clamp(min=1e-30), 0.0)
        yield "g_1", {"": lambda: _called(memory, call, beta=beta)}
    if memory.writes > 1 or len(call.k) * call.k.shape[1] * length**2 > _MOST_PAIRS:
        return
    w, q, own = _raw(memory, call)
    seen = _seen(call)
    not_superseded = latest(w.k, seen)
    if memory.read_norm != "full" and len(q) * length**2 <= _MOST_WRITES:
        places = torch.arange(length, device=q.device)
        masks = {"no_superseded": not_superseded}
        for n in (4**i for i in range(1, length.bit_length()) if 4**i < length):
            recent = places > places[:, None] - n
            masks[f"last_{n}"] = (seen & recent)[:, None].expand_as(not_superseded)
        divided = memory.read_norm == "output"
        for name, kept in masks.items():
            yield (
                name,
                {
                    "": lambda kept=kept: _finished(
                        memory, call, reads_without(w, q, kept, divided=divided)
                    )
                },
            )

    def replaced(reads: Tensor) -> Tensor:
        return _finished(memory, call, rescaled(reads, own))

    yield (
        "linear",
        {
            f"{x:g}": lambda x=x: replaced(linear_reads(q, w.k, w.v, not_superseded, ridge=x))
            for x in RIDGES
        },
    )
    yield "nearest", {"": lambda: replaced(nearest_reads(q, w.k, w.v, not_superseded))}
    yield (
        "softmax",
        {
            f"{x:g}": lambda x=x: replaced(softmax_reads(q, w.k, w.v, seen, temperature=x))
            for x in TEMPERATURES
        },
    )


def _called(
    memory: Any, call: Call, *, every: int | None = None, beta: Tensor | None = None
) -> Tensor:
    """Call the memory as the model did, emptied before every so many tokens or otherwise strong."""
    gates, starts = call.gates, call.starts
    if beta is not None:
        gates = gates._replace(beta=beta.to(call.gates.beta.dtype))
    if every is not None:
        places = torch.arange(call.q.shape[2], device=call.q.device)
        emptied = (places % every == 0).expand(len(call.q), -1)
        starts = emptied if starts is None else emptied | starts
    return memory(call.q, call.k, call.v, gates, starts=starts)[0]


def _raw(memory: Any, call: Call) -> tuple[Written, Tensor, Tensor]:
    """Return what the memory wrote, its queries, and its reads before what comes behind them."""
    observer = Observer()
    kept = memory.out_norm, memory.skip, memory.output_scale
    try:
        memory.observer = observer
        memory.out_norm, memory.skip, memory.output_scale = nn.Identity(), None, 1.0
        own, _ = memory(call.q, call.k, call.v, call.gates, starts=call.starts)
    finally:
        memory.out_norm, memory.skip, memory.output_scale = kept
        del memory.observer
    x, ((q, _),) = observer.writes[0], observer.reads[0]
    w = Written(x.k, x.v, x.beta, memory.update_rule, x.gates, read_eps=memory.read_eps)
    return w, q, own


def _finished(memory: Any, call: Call, reads: Tensor) -> Tensor:
    """Return what the memory makes of reads."""
    reads = reads.to(call.output.dtype) * memory.output_scale
    if memory.skip is not None:
        reads = reads + memory.skip[:, None, None] * call.v
    return memory.out_norm(reads)


def _seen(call: Call) -> Tensor:
    """Return which positions each one sees `[b, t, t]`."""
    places = torch.arange(call.q.shape[2], device=call.q.device)
    seen = (places <= places[:, None]).expand(len(call.q), -1, -1)
    return seen if call.starts is None else seen & (places >= begins_at(call.starts)[..., None])
