"""The memories of a network, and what they did in one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.diagnostics.diagnose import Diagnosis, diagnosis_statistics, finalise_diagnosis
from fwlight.diagnostics.softmax import Attended, softmax_statistics
from fwlight.diagnostics.statistics import Statistics, merge
from fwlight.diagnostics.written import Written
from fwlight.evaluation import undisturbed
from fwlight.mixers import FastWeights, KeyValues
from fwlight.mixers.observation import Writes
from fwlight.types import Sequences

_PAIRS = 2**22
"""Pairs of positions that are compared at a time: a few hundred megabytes."""


class Layer(NamedTuple):
    """One memory of a network."""

    name: str
    """`layer<i>`, in networks of several stacks `<stack>/layer<i>`."""
    memory: Any
    """A `FastWeights` or `KeyValues`."""
    n_heads: int
    n_types: int = 0
    """Types of tokens that the network has embeddings of."""

    @property
    def is_softmax(self) -> bool:
        """Whether it is softmax attention, which has no fast weights."""
        return isinstance(self.memory, KeyValues)

    @property
    def d_dot(self) -> int:
        """Numbers in a key as it is written."""
        return self.memory.d_head if self.is_softmax else self.memory.d_dot

    @property
    def stack(self) -> str:
        """The stack's name; "" if there is only one."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Found:
    """What was measured of a layer, and what follows from it when somebody asks."""

    layer: Layer
    statistics: Statistics

    @cached_property
    def heads(self) -> Diagnosis:
        """Values and verdicts by head; of softmax attention its values alone."""
        return finalise_diagnosis(self.statistics, self.layer.d_dot)

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """The same values of all heads pooled."""
        return finalise_diagnosis(pooled(self.statistics), self.layer.d_dot).values


class Observer:
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

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h s d"],
        padding_mask: Bool[Tensor, "b s"] | None,
        /,
        *,
        causal: bool,
        seen: Bool[Tensor, "b n s"] | None = None,
    ) -> None:
        """Keep them, and a copy of the keys, which beam search reorders in place."""
        self.attended.append(Attended(q, k.clone(), causal, padding_mask, seen=seen))


def memory_layers(network: nn.Module) -> list[Layer]:
    """Return the memories of any network built of this library's mixers, in order.

    Fast weights and softmax attention are numbered together. Where a mixer has several memories,
    those beside its first have their names behind the number: `layer0_recurrent`.
    """
    found = [
        (_stack(name), module) for name, module in network.named_modules() if _memories(module)
    ]
    n_types = getattr(getattr(network, "embedding", None), "num_embeddings", 0)
    layers, counts = [], dict.fromkeys((stack for stack, _ in found), 0)
    for stack, module in found:
        label = f"layer{counts[stack]}"
        label = f"{stack}/{label}" if len(counts) > 1 else label
        for name, memory in _memories(module).items():
            n_heads = getattr(memory, "n_heads", 1)
            layers.append(Layer(f"{label}_{name}" if name else label, memory, n_heads, n_types))
        counts[stack] += 1
    return layers


def _memories(module: nn.Module) -> dict[str, Any]:
    """Return a mixer's memories by name; its first has none."""
    named = getattr(module, "memories", None) or {"": getattr(module, "memory", None)}
    return {
        name: memory
        for name, memory in (named.items() if isinstance(named, dict) else ())
        if isinstance(memory, FastWeights | KeyValues)
    }


def watch_forward(
    network: nn.Module, layers: Sequence[Layer], forward: Callable[[], Any]
) -> dict[str, Observer]:
    """Run a forward pass that leaves no trace and return what every layer did in it.

    It runs without gradient, dropout, new draws of random features or compiled code, and neither
    the network nor the global random numbers are changed by it.

    Args:
        network: What `forward` calls.
        layers: Those to watch.
        forward: Runs the network on a batch.
    """
    observers = {layer.name: Observer() for layer in layers}
    try:
        for layer in layers:
            layer.memory.observer = observers[layer.name]
        with undisturbed(network):
            forward()
    finally:
        for layer in layers:
            del layer.memory.observer  # the class has None
    return observers


def look(
    module: Any,
    layers: Sequence[Layer],
    batch: Any,
    *,
    context: AbstractContextManager[Any] | None = None,
) -> Iterator[tuple[Layer, list[Any]]]:
    """Let a module run on a batch without a trace; yield every layer with what is `shown` of it.

    Args:
        module: A `fwlight.training.TrainingModule`.
        layers: Those to watch.
        batch: Of the module's task.
        context: In which it runs.
    """

    def forward() -> None:
        with context or nullcontext():
            module(batch)

    observers = watch_forward(module.network, layers, forward)
    of = module.sequences(batch)
    for layer in layers:
        yield layer, shown(layer, observers[layer.name], of=of.get(layer.stack))


def shown(layer: Layer, observer: Observer, *, of: Sequences | None = None) -> list[Any]:
    """Return what was seen of a layer, in parts small enough to measure.

    Of fast weights they are `Written`, with zeros at padding; of softmax attention `Attended`. What
    shows nothing, as some memories do in rows of several sequences, is `nothing`.

    Args:
        layer: The layer.
        observer: What `watch_forward` saw of it.
        of: The sequences, for their tokens and masks; None leaves the masks that the layer had.
    """
    if layer.is_softmax:
        asked = None if of is None else of.query_mask
        kernel = layer.memory.kernel
        return [x._replace(query_mask=asked, kernel=kernel) for x in observer.attended]
    if not observer.writes:
        return nothing(layer)
    tokens = None if of is None else of.tokens.repeat_interleave(layer.memory.writes, dim=1)
    parts = []
    for writes, reads in zip(observer.writes, observer.reads, strict=True):
        q, query_mask = reads[0] if reads else (None, None)
        if of is not None and of.padding_mask is not None:
            mask = of.padding_mask.repeat_interleave(layer.memory.writes, dim=1)
            writes, query_mask = writes._replace(padding_mask=mask), of.query_mask
        length = max(writes.k.shape[2], 0 if q is None else q.shape[2], 1)
        rows = max(1, _PAIRS // (writes.k.shape[1] * length**2))
        for start in range(0, max(1, writes.k.shape[0]), rows):
            part = slice(start, start + rows)
            few = writes.rows(part)
            asked, hidden, ids = (x if x is None else x[part] for x in (q, query_mask, tokens))
            w = Written(
                *(few.k, few.v, few.beta, layer.memory.update_rule, few.gates),
                *(few.initial_state, few.padding_mask, asked, hidden, few.key_sum),
                *(layer.memory.read_eps, few.projected_k, ids),
            )
            parts.append(w.real())
    return parts


def layer_statistics(layer: Layer, parts: Sequence[Any]) -> Statistics:
    """Return all that can be measured of what is `shown` of a layer."""
    measure = softmax_statistics if layer.is_softmax else diagnosis_statistics
    return merge(*(measure(x) for x in parts))


def nothing(layer: Layer) -> list[Any]:
    """Return what is `shown` of a layer by no sequence at all: everything there is, but empty."""
    memory, observer = layer.memory, Observer()
    if layer.is_softmax:
        k = torch.zeros(0, layer.n_heads, 1, memory.d_head)
        observer.attend(k, k, None, causal=True)
    else:
        sizes = (memory.d_dot, memory.d_value)
        k, v = (torch.zeros(0, layer.n_heads, memory.writes, size) for size in sizes)
        beta = k[..., 0] if memory.has_beta else None
        z = k.sum(2) if memory.read_norm != "none" else None
        decay = k[..., 0] if "decay" in memory.gates.emits else None
        observer.write(Writes(k, k, v, beta, z, decay=decay))
        observer.read(k)
    return shown(layer, observer, of=Sequences(torch.zeros(0, 1, dtype=torch.long)))


def pooled(statistics: Statistics) -> Statistics:
    """Return the statistics of all heads together, as those of one head."""
    sums, maxima = statistics
    return Statistics(
        {name: x.sum(0, keepdim=True) for name, x in sums.items()},
        {name: x.amax(0, keepdim=True) for name, x in maxima.items()},
    )


def some_rows(batch: Any, rows: slice) -> Any:
    """Return a batch, a named tuple, of some of its sequences."""
    return type(batch)(*(x[rows] if isinstance(x, Tensor) else x for x in batch))


def n_rows(batch: Any) -> int:
    """Return how many sequences are in a batch."""
    return next(len(x) for x in batch if isinstance(x, Tensor))


def _stack(name: str) -> str:
    """Return the last name on the way to a layer that says something: `cross`, `encoder`."""
    said = [part for part in name.split(".") if not part.isdecimal()]
    return ([""] + [part for part in said if part not in ("attention", "_orig_mod")])[-1]
