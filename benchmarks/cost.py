"""What a training step of a language model costs, on paper: operations, bytes, wires, seconds.

Counted are the operations of matrix products, two a multiplication and addition, and the bytes that
operators read and write, each its arguments and results once, in float32. A part takes the longer
of the two times that these need at the machine's rates (Williams et al. 2009, the roofline model).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from fwlight.diagnostics.kind import rule_kind
from fwlight.mixers import MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.ops.chunks import CHUNK_SIZE, chunk_length

FLOAT = 4  # bytes
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes of gradients after which DistributedDataParallel sends them: the first time, and later."""
OPTIMISER = 10
"""Numbers moved for a parameter: its gradient normed (1) and clipped (2); Adam reads the parameter,
the gradient and two moments, and writes all but the gradient (7)."""


class Machine(NamedTuple):
    """What one rank does a second."""

    operations: float
    copied: float
    """Bytes read and written."""


class Network(NamedTuple):
    """What joins the ranks."""

    bandwidth: float
    """Bytes a second that a rank sends, while it receives as many."""
    latency: float
    """Seconds of a message beyond that."""

    def all_reduce(self, size: float, ranks: int) -> float:
        """Return the seconds of 2 (n - 1) steps around a ring, each with 1 / n of the bytes."""
        return 2 * self.all_gather(size, ranks)

    def all_gather(self, size: float, ranks: int) -> float:
        """Return the seconds of half of these steps, of a reduce-scatter too."""
        return (ranks - 1) * (self.latency + size / ranks / self.bandwidth)


class Work(NamedTuple):
    """What is done for one token."""

    operations: float
    numbers: float
    """Read and written."""


class Part(NamedTuple):
    """A part of a network, its forward and backward pass."""

    name: str
    forward: Work
    backward: Work
    weights: int = 0
    """Read in both passes, once a step; the second writes a gradient of this size."""

    def seconds(self, tokens: float, machine: Machine) -> tuple[float, float]:
        """Return the times of both passes."""

        def longer(work: Work, times: int) -> float:
            moved = FLOAT * (tokens * work.numbers + times * self.weights)
            return max(tokens * work.operations / machine.operations, moved / machine.copied)

        return longer(self.forward, 1), longer(self.backward, 2)


class Stage(NamedTuple):
    """What the backward pass does at one go: the embedding, a layer or the output layer."""

    parts: tuple[Part, ...]
    gradients: tuple[int, ...]
    """Sizes of those that are complete after it."""


@dataclass(frozen=True)
class Cost:
    """Of a network, in the order of the forward pass."""

    stages: tuple[Stage, ...]

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(sum(stage.gradients) for stage in self.stages)

    @property
    def gradient_bytes(self) -> int:
        """The size of the gradient."""
        return FLOAT * self.parameters

    def parts(self) -> dict[str, list[Part]]:
        """Return the parts by name, those of all layers together."""
        found: dict[str, list[Part]] = {}
        for stage in self.stages:
            for part in stage.parts:
                found.setdefault(part.name, []).append(part)
        return found

    def passes(self, tokens: float, machine: Machine) -> list[tuple[float, float]]:
        """Return the seconds of every stage forward and backward."""
        times = [[part.seconds(tokens, machine) for part in x.parts] for x in self.stages]
        return [(sum(t[0] for t in stage), sum(t[1] for t in stage)) for stage in times]

    def update(self, machine: Machine, *, shards: int = 1) -> float:
        """Return the seconds of clipping and Adam, for one of so many shards."""
        return FLOAT * OPTIMISER * self.parameters / shards / machine.copied

    def step(
        self, tokens: float, machine: Machine, network: Network, *, ranks: int, overlap: bool = True
    ) -> float:
        """Return the seconds of a step with whole weights on every rank.

        A bucket of gradients is sent when the last of them is complete and the one before has
        arrived; meanwhile the backward pass goes on, unless there is no overlap.

        Args:
            tokens: Of one rank.
            machine: Each rank's own.
            network: Between any two.
            ranks: How many.
            overlap: Whether something else than what computes sends.
        """
        times = self.passes(tokens, machine)
        forward, backward = (sum(x) for x in zip(*times, strict=True))
        done = forward
        if ranks > 1:
            for size, ready in self.buckets([x for _, x in times]):
                done = max(done, forward + (ready if overlap else backward))
                done += network.all_reduce(size, ranks)
        return max(forward + backward, done) + self.update(machine)

    def sharded_step(
        self, tokens: float, machine: Machine, network: Network, *, ranks: int
    ) -> float:
        """Return the seconds of a step with 1 / n of weights, gradients and moments on every rank.

        Weights are gathered for the forward pass and again for the backward pass, gradients are
        reduced and scattered (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3), a stage at a
        time, while another stage is computed.
        """
        forward, backward = (sum(x) for x in zip(*self.passes(tokens, machine), strict=True))
        sizes = [FLOAT * sum(stage.gradients) for stage in self.stages if stage.gradients]
        gather = sum(network.all_gather(size, ranks) for size in sizes)
        update = self.update(machine, shards=ranks)
        return max(forward, gather) + max(backward, 2 * gather) + update

    def buckets(self, backward: Sequence[float]) -> list[tuple[int, float]]:
        """Return bytes of every bucket and when it is complete, from the seconds of stages."""
        found: list[tuple[int, float]] = []
        size, now = 0, 0.0
        for stage, seconds in zip(reversed(self.stages), reversed(backward), strict=True):
            now += seconds
            for numbers in reversed(stage.gradients):
                size += FLOAT * numbers
                if size >= (BUCKET if found else FIRST_BUCKET):
                    found.append((size, now))
                    size = 0
        return [*found, (size, now)] if size else found


def wire_bytes(gradient: float, ranks: int, *, sharded: bool = False) -> float:
    """Return what a rank sends in a step, and receives: 2 or, with sharded weights, 3 passes."""
    return (3 if sharded else 2) * (ranks - 1) / ranks * gradient


def cost_of(network: DecoderLM, tokens: int, *, chunk: int = CHUNK_SIZE) -> Cost:
    """Return the cost of a network, perhaps on the meta device, on sequences of so many tokens.

    Raises:
        ValueError: If it has something that is not counted here.
    """
    width = network.d_model
    table = network.embedding.weight
    if not isinstance(network.output, nn.Linear):
        raise ValueError("the adaptive softmax costs what the words' frequencies make of it")
    output = network.output.weight
    tied = output is table
    classes = len(output)
    # A row is read, scaled and added to a position, and dropped out of.
    embedding = Part("embedding", Work(0, 6 * width), Work(0, 7 * width), table.numel())
    product = 2 * width * classes
    # Logits, their log-softmax, its gradient and the two products that read it.
    forward = Work(product, width + 3 * classes)
    backward = Work(2 * product, 2 * width + 6 * classes)
    read_out = Part("output layer", forward, backward, output.numel())
    # The gradient of a tied table is complete with the embedding's part of it.
    kept = [p for p in network.output.parameters() if not (tied and p is output)]
    last = [*network.final_norm.parameters(), *kept]
    layers = [
        Stage(_layer(block, tokens, chunk), _sizes(block.parameters())) for block in network.blocks
    ]
    return Cost(
        (
            Stage((embedding,), _sizes(network.embedding.parameters())),
            *layers,
            Stage((read_out,), _sizes(last)),
        )
    )


def _sizes(parameters: Iterable[torch.Tensor]) -> tuple[int, ...]:
    return tuple(p.numel() for p in parameters)


def _layer(block: Any, tokens: int, chunk: int) -> tuple[Part, ...]:
    if not isinstance(block.attention, MultiHeadAttention):
        raise ValueError("only layers of attention, linear or not, are counted")
    attention, feed_forward = block.attention, block.feed_forward
    if attention.short_conv is not None or attention.out_gate_up is not None:
        raise ValueError("convolutions and output gates of low rank are not counted")
    weight, back = attention.in_proj.weight, attention.out_proj.weight
    rows, width = weight.shape
    values = back.shape[1]
    weights = weight.numel() + back.numel()
    moved = 2 * width + rows + values
    projections = Work(2 * weights, moved), Work(4 * weights, 2 * moved)
    inner, hidden = feed_forward[0].weight, feed_forward[3].weight
    between = inner.numel() + hidden.numel()
    wide, narrow = len(inner), hidden.shape[1]
    moved = 2 * width + wide + narrow
    feed = (
        Work(2 * between, moved + wide + 3 * narrow),
        Work(4 * between, 2 * moved + 2 * wide + 3 * narrow),
    )
    # To heads and back; then two norms, residual sums and dropouts.
    heads = Work(0, 2 * (rows + values))
    return (
        Part("projections", *projections, weights),
        *_memory(attention, tokens, chunk),
        Part("feed-forward", *feed, between),
        Part("heads", heads, heads),
        Part("norms, residuals", Work(0, 14 * width), Work(0, 12 * width)),
    )


def _memory(attention: Any, tokens: int, chunk: int) -> tuple[Part, ...]:
    """Return the parts between the projections."""
    memory, h, d, v = attention.memory, attention.n_heads, attention.d_head, attention.d_value
    if memory.state_size is None:
        # q k^T and its product with v; backward both once more, and their four gradients.
        n = h * tokens
        forward = Work(2 * n * (d + v), 2 * h * (d + v))
        backward = Work(n * (6 * d + 4 * v), 4 * h * (d + v))
        return (Part("softmax", forward, backward),)
    features = memory.d_dot
    if memory.writes > 1 or set(memory.gates.emits) - {"beta"}:
        raise ValueError("gates that forget or erase, and several writes a token, are not counted")
    k, values = torch.zeros(1, h, 1, features), torch.zeros(1, h, 1, v)
    kind = rule_kind(memory.update_rule, k, values, k[..., 0] if memory.has_beta else None)
    if kind == "other":
        raise ValueError("of update rules, those of sum and delta are counted")
    random = 2 * d * getattr(memory.feature_map, "num_features", 0)
    chosen = Part(
        "feature map",
        Work(2 * h * random, 2 * h * (d + features)),
        Work(2 * h * random, 2 * h * (2 * d + features)),
    )
    forward, backward = rule_operations(kind, features, v, chunk_length(tokens, chunk))
    states = features * v / chunk_length(tokens, chunk)
    rule = Part(
        "update rule",
        Work(h * forward, h * (2 * features + 2 * v + states)),
        Work(h * backward, h * (4 * features + 4 * v + states)),
    )
    return chosen, rule


def rule_operations(kind: str, k: int, v: int, c: int) -> tuple[int, int]:
    """Return the operations of a token and head, forward and backward, of the chunkwise form.

    Products with a state take 2 K V; those within a chunk of C tokens 2 C K and 2 C V, as plain
    products, of which a mask drops half; one of the delta rule's triangular systems takes C V.

        sum      4 K V + 2 C K + 2 C V      10 K V + 6 C K + 4 C V
        delta    6 K V + 4 C K + 3 C V      14 K V + 10 C K + 10 C V
    """
    if kind == "sum":
        return 4 * k * v + 2 * c * (k + v), 10 * k * v + c * (6 * k + 4 * v)
    return 6 * k * v + c * (4 * k + 3 * v), 14 * k * v + c * (10 * k + 10 * v)
