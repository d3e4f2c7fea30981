"""Everything that is found out about the layers of a network, batch by batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from fwlight.diagnostics.beta import TokenBeta, finalise_tokens, token_statistics
from fwlight.diagnostics.layer_capacity import key_statistics, layer_capacity
from fwlight.diagnostics.layers import Found, Layer, layer_statistics, look, memory_layers
from fwlight.diagnostics.statistics import Statistics, merge
from fwlight.diagnostics.verdict import in_words


@dataclass(frozen=True)
class Findings(Found):
    """What is known of one layer."""

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
    module: Any,
    batches: Iterable[Any],
    *,
    layers: Sequence[Layer] | None = None,
    n_tokens: int = 15,
    draws: int = 20,
) -> list[Findings]:
    """Watch a module on batches and return what is found of every layer.

    Args:
        module: A `fwlight.training.TrainingModule` around memories of this library.
        batches: Of its task.
        layers: Those to watch; None is `memory_layers` of its network.
        n_tokens: Length of each list of tokens.
        draws: Sequences with which the capacity is measured at every size; 0 leaves it out.
    """
    layers = memory_layers(module.network) if layers is None else layers
    found: dict[str, list[Statistics]] = {layer.name: [] for layer in layers}
    for batch in batches:
        for layer, seen in look(module, layers, batch):
            found[layer.name].append(_statistics(layer, seen))
    return [
        _findings(layer, merge(*found[layer.name]), n_tokens=n_tokens, draws=draws)
        for layer in layers
    ]


def _statistics(layer: Layer, parts: Sequence[Any]) -> Statistics:
    found = [layer_statistics(layer, parts)]
    for w in () if layer.is_softmax else parts:
        found.append(key_statistics(w))
        if w.beta is not None and w.tokens is not None and layer.memory.has_beta:
            found.append(token_statistics(w, n_types=layer.n_types))
    return merge(*found)


def _findings(layer: Layer, statistics: Statistics, *, n_tokens: int, draws: int) -> Findings:
    tokens = capacity = None
    if "tokens/count" in statistics.sums:
        tokens = finalise_tokens(statistics, n_tokens, min_count=3)
    if draws and not layer.is_softmax and bool((statistics.sums["keys/count"] > 0).all()):
        capacity = layer_capacity(layer, statistics, draws=draws, limit=2 * layer.d_dot)
    return Findings(layer, statistics, tokens, capacity)
