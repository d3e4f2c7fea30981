"""The memories of a network, and what they did in one forward pass."""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.compiling import uncompiled
from fwlight.diagnostics.diagnose import PARTS, diagnosis_statistics
from fwlight.diagnostics.softmax import softmax_statistics
from fwlight.diagnostics.statistics import Statistics, merge
from fwlight.mixers import FastWeights, KeyValues
from fwlight.mixers.observation import Writes

_PAIRS = 2**22
"""Pairs of positions that are compared at a time: a few hundred megabytes."""


class Layer(NamedTuple):
    """One memory of a network."""

    name: str
    """`layer<i>`, in networks of several stacks `<stack>/layer<i>`."""
    memory: Any
    """A `FastWeights` or `KeyValues`."""
    n_heads: int

    @property
    def is_softmax(self) -> bool:
        """Whether it is softmax attention, which has no fast weights."""
        return isinstance(self.memory, KeyValues)


class Sequences(NamedTuple):
    """What the layers of a stack write, and what reads it."""

    tokens: Int[Tensor, "b t"]
    """Ids of what is written."""
    padding_mask: Bool[Tensor, "b t"] | None
    """True where that is padding."""
    query_mask: Bool[Tensor, "b n"] | None
    """True where a query is padding."""


class Attended(NamedTuple):
    """One read of softmax attention."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h s d"]
    padding_mask: Bool[Tensor, "b s"] | None
    causal: bool


class Watcher:
    """Keeps what one memory shows during a forward pass."""

    def __init__(self) -> None:
        self.writes: list[Writes] = []
        self.reads: list[list[tuple[Tensor, Tensor | None]]] = []
        self.attended: list[Attended] = []

    def write(self, writes: Writes, /) -> None:
        """Keep them, and a copy of the state, which decoding writes over."""
        if writes.initial_state is not None:
            writes = writes._replace(initial_state=writes.initial_state.clone())
        self.writes.append(writes)
        self.reads.append([])

    def read(self, q: Tensor, padding_mask: Tensor | None = None, /) -> None:
        """Keep them with what was written last; a state from elsewhere shows no writes."""
        if self.reads:
            self.reads[-1].append((q, padding_mask))

    def attend(self, q: Tensor, k: Tensor, padding_mask: Tensor | None, /, *, causal: bool) -> None:
        """Keep them, and a copy of the keys, which beam search reorders in place."""
        k = k.clone()
        self.attended.append(Attended(q, k, padding_mask, causal))


def memory_layers(network: nn.Module) -> list[Layer]:
    """Return the memories of any network built of this library's attention, in order.

    Fast weights and softmax attention are numbered together.
    """
    found: list[tuple[str, Any, int]] = []
    for name, module in network.named_modules():
        memory = getattr(module, "memory", None)
        if isinstance(memory, FastWeights | KeyValues):
            found.append((name, memory, getattr(module, "n_heads", 1)))
    stacks = [_stack(name) for name, _, _ in found]
    layers, counts = [], dict.fromkeys(stacks, 0)
    for (_, memory, n_heads), stack in zip(found, stacks, strict=True):
        label = f"layer{counts[stack]}"
        layers.append(Layer(f"{stack}/{label}" if len(counts) > 1 else label, memory, n_heads))
        counts[stack] += 1
    return layers


def watch_forward(
    network: nn.Module, layers: Sequence[Layer], forward: Callable[[], Any]
) -> dict[str, Watcher]:
    """Run a forward pass that leaves no trace and return what every layer did in it.

    It runs without gradient, dropout, new draws of random features or compiled code, and neither
    the network nor the global random numbers are changed by it.

    Args:
        network: What `forward` calls.
        layers: Those to watch.
        forward: Runs the network on a batch.
    """
    watchers = {layer.name: Watcher() for layer in layers}
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(module, dict(module._buffers)) for module in network.modules()]
    try:
        for layer in layers:
            layer.memory.observer = watchers[layer.name]
        network.eval()
        with torch.no_grad(), _same_random_numbers(), uncompiled():
            forward()
    finally:
        for layer in layers:
            del layer.memory.observer  # the class has None
        for module, training in modes:
            module.training = training
        for module, kept in buffers:
            module._buffers.update(kept)
    return watchers


def sequences(layer: Layer, network: nn.Module, batch: Any) -> Sequences:
    """Return what a layer writes of a batch of `fwlight.types`.

    A decoder needs no mask to train, nothing reads what comes later, but what it writes at padding
    is no part of a sentence.
    """
    writes = layer.memory.writes
    if not hasattr(batch, "source"):
        tokens = batch.keys if hasattr(batch, "keys") else batch.inputs
        return Sequences(tokens.repeat_interleave(writes, dim=1), None, None)
    source, inputs = (x == network.pad_id for x in (batch.source, batch.inputs))
    stack = layer.name.split("/")[0]
    if stack == "decoder":
        written, mask, asked = batch.inputs, inputs, inputs
    else:
        written, mask, asked = batch.source, source, inputs if stack == "cross" else source
    written, mask = (x.repeat_interleave(writes, dim=1) for x in (written, mask))
    return Sequences(written, mask, asked)


def layer_statistics(
    layer: Layer,
    watcher: Watcher,
    *,
    of: Sequences | None = None,
    parts: Collection[str] = PARTS,
    mixed: tuple[float, float] = (2.0, 1.0),
) -> Statistics:
    """Return what a watched layer did: of a fast weight memory `parts`, or of softmax attention.

    Args:
        layer: The layer.
        watcher: What `watch_forward` saw of it.
        of: The sequences, for their masks; None leaves those that the layer was given.
        parts: Of `PARTS`.
        mixed: Exponents p and q of the mixed norm.
    """
    asked = None if of is None else of.query_mask
    found = [
        softmax_statistics(x.q, x.k, causal=x.causal, padding_mask=x.padding_mask, query_mask=asked)
        for x in watcher.attended
    ]
    for writes, reads in zip(watcher.writes, watcher.reads, strict=True):
        q, query_mask = reads[0] if reads else (None, None)
        if of is not None and of.padding_mask is not None:
            writes, query_mask = writes._replace(padding_mask=of.padding_mask), of.query_mask
        length = max(writes.k.shape[2], 0 if q is None else q.shape[2], 1)
        rows = max(1, _PAIRS // (writes.k.shape[1] * length**2))
        for start in range(0, max(1, writes.k.shape[0]), rows):
            part = slice(start, start + rows)
            few = writes.rows(part)
            found.append(
                diagnosis_statistics(
                    few.k,
                    few.v,
                    few.beta,
                    rule=layer.memory.update_rule,
                    q=None if q is None else q[part],
                    key_sum=few.key_sum,
                    read_eps=layer.memory.read_eps,
                    padding_mask=few.padding_mask,
                    initial_state=few.initial_state,
                    query_mask=None if query_mask is None else query_mask[part],
                    mixed=mixed,
                    gates=few.gates,
                    parts=parts,
                )
            )
    return merge(*found)


def empty_statistics(layer: Layer, *, parts: Collection[str] = PARTS) -> Statistics:
    """Return the statistics of no sequence at all: every name there is, with the right shapes."""
    memory, watcher = layer.memory, Watcher()
    if isinstance(memory, KeyValues):
        nothing = torch.zeros(0, layer.n_heads, 1, memory.d_head)
        watcher.attend(nothing, nothing, None, causal=True)
    else:
        k = torch.zeros(0, layer.n_heads, 1, memory.d_dot)
        v = torch.zeros(0, layer.n_heads, 1, memory.d_value)
        beta = k[..., 0] if memory.has_beta else None
        z = k.sum(2) if memory.read_norm != "none" else None
        decay = k[..., 0] if "decay" in memory.gates.emits else None
        watcher.write(Writes(k, k, v, beta, z, decay=decay))
        watcher.read(k)
    return layer_statistics(layer, watcher, parts=parts)


def pooled(statistics: Statistics) -> Statistics:
    """Return the statistics of all heads together, as those of one head."""
    sums, maxima = statistics
    return Statistics(
        {name: x.sum(0, keepdim=True) for name, x in sums.items()},
        {name: x.amax(0, keepdim=True) for name, x in maxima.items()},
    )


def _stack(name: str) -> str:
    """Return the last name on the way to a layer that says something: `cross`, `encoder`."""
    said = [part for part in name.split(".") if not part.isdecimal()]
    return ([""] + [part for part in said if part not in ("attention", "_orig_mod")])[-1]


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Let what follows draw without moving the global generators of PyTorch and Python."""
    python = random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
