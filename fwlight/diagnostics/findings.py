"""Everything that is found out about the layers of a network, batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from fwlight.diagnostics.beta import TokenBeta, finalise_tokens, token_statistics
from fwlight.diagnostics.diagnose import Diagnosis, finalise_diagnosis
from fwlight.diagnostics.layer_capacity import key_statistics, layer_capacity
from fwlight.diagnostics.layers import (
    Layer,
    Sequences,
    Watcher,
    layer_statistics,
    memory_layers,
    pooled,
    sequences,
    watch_forward,
)
from fwlight.diagnostics.softmax import finalise_softmax
from fwlight.diagnostics.statistics import Statistics, merge
from fwlight.diagnostics.verdict import in_words


class Findings(NamedTuple):
    """What is known of one layer."""

    layer: Layer
    statistics: Statistics
    heads: Diagnosis
    """Values and verdicts by head; of softmax attention its values alone."""
    whole: dict[str, Tensor]
    """The same values of all heads pooled."""
    tokens: tuple[TokenBeta, TokenBeta] | None
    """Those written with the highest and the lowest beta; None without a write strength."""
    capacity: Int[Tensor, " h"] | None
    """How many Gaussian keys like its own every head holds; None if it was not measured."""

    @property
    def line(self) -> str:
        """One line of diagnosis."""
        if self.layer.is_softmax:
            spans = (float(self.whole[f"span/{x}"]) for x in ("mean", "p5", "p95"))
            return "softmax attention over {:.1f} positions ({:.1f} to {:.1f})".format(*spans)
        return in_words(self.heads.verdicts, self.whole)


def find_out(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], Any],
    mixed: tuple[float, float] = (2.0, 1.0),
    n_tokens: int = 15,
    draws: int = 20,
) -> list[Findings]:
    """Watch a network on batches and return what is found of every layer.

    Args:
        network: With memories of this library.
        batches: Of `fwlight.types`.
        forward: Runs the network on a batch.
        mixed: Exponents p and q of the mixed norm.
        n_tokens: Length of each list of tokens.
        draws: Sequences with which the capacity is measured at every size; 0 leaves it out.
    """
    layers = memory_layers(network)
    found: dict[str, list[Statistics]] = {layer.name: [] for layer in layers}
    for batch in batches:
        watchers = watch_forward(network, layers, lambda batch=batch: forward(batch))
        for layer in layers:
            of = sequences(layer, network, batch)
            found[layer.name].append(_statistics(network, layer, watchers[layer.name], of, mixed))
    return [
        _findings(layer, merge(*found[layer.name]), n_tokens=n_tokens, draws=draws)
        for layer in layers
    ]


def _statistics(
    network: nn.Module, layer: Layer, watcher: Watcher, of: Sequences, mixed: tuple[float, float]
) -> Statistics:
    found = [layer_statistics(layer, watcher, of=of, mixed=mixed)]
    if not layer.is_softmax:
        found.append(key_statistics(watcher, of))
    for writes in watcher.writes:
        if layer.memory.has_beta and writes.beta is not None:
            n_types = int(network.embedding.num_embeddings)  # pyright: ignore
            found.append(
                token_statistics(
                    writes.beta, of.tokens, n_types=n_types, padding_mask=of.padding_mask
                )
            )
    return merge(*found)


def _findings(layer: Layer, statistics: Statistics, *, n_tokens: int, draws: int) -> Findings:
    if layer.is_softmax:
        heads = Diagnosis(finalise_softmax(statistics), [])
        return Findings(layer, statistics, heads, finalise_softmax(pooled(statistics)), None, None)
    d_dot = layer.memory.d_dot
    tokens = capacity = None
    if "tokens/count" in statistics.sums:
        tokens = finalise_tokens(statistics, n_tokens, min_count=3)
    if draws and bool((statistics.sums["keys/count"] > 0).all()):
        capacity = layer_capacity(layer, statistics, draws=draws, limit=2 * d_dot)
    return Findings(
        layer,
        statistics,
        finalise_diagnosis(statistics, d_dot),
        finalise_diagnosis(pooled(statistics), d_dot).values,
        tokens,
        capacity,
    )
