"""How softmax attention looks back, in the dashboard of the memories it is compared with."""

from lightning import Trainer

from callbacks.watching import LayerWatcher
from fwlight.diagnostics import Statistics
from fwlight.diagnostics.layers import (
    Layer,
    Sequences,
    Watcher,
    empty_statistics,
    layer_statistics,
    pooled,
)
from fwlight.diagnostics.softmax import QUANTITIES, finalise_softmax


class SoftmaxAttention(LayerWatcher):
    """Logs `softmax_attention/<layer>/{entropy,span,distance}...`, all heads pooled.

    Args:
        every_n_steps: Steps between two looks.
        sequences: How many of the batch over all processes; None is all.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = "softmax_attention"

    def __init__(self, *, every_n_steps: int = 200, sequences: int | None = 4) -> None:
        super().__init__(every_n_steps=every_n_steps, sequences=sequences)

    def watches(self, layer: Layer) -> bool:
        """Whether it is softmax attention."""
        return layer.is_softmax

    def empty(self, layer: Layer, trainer: Trainer) -> Statistics:
        """Return the statistics of nothing."""
        return empty_statistics(layer)

    def measure(self, layer: Layer, watcher: Watcher, of: Sequences) -> Statistics:
        """Return entropy, span and distance."""
        return layer_statistics(layer, watcher, of=of)

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return means and the outer percentiles."""
        values = finalise_softmax(pooled(statistics))
        names = {name: f"{name}/mean" for name in QUANTITIES}
        names |= {f"{name}_{p}": f"{name}/{p}" for name in QUANTITIES for p in ("p5", "p95")}
        return {name: float(values[source]) for name, source in names.items()}

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return the charts of the dashboard."""
        where = f"{self.tag}/{layer.name}/"
        return {
            "entropy of attention": [f"{where}entropy(_p5|_p95)?$"],
            "positions attended to": [f"{where}span(_p5|_p95)?$"],
        }

    def describe(self, layer: Layer) -> str | None:
        """Return how it looks back, in words."""
        values = self.scalars(layer, self.latest[layer.name])
        return (
            f"softmax attention over {values['span']:.1f} positions "
            f"({values['span_p5']:.1f} to {values['span_p95']:.1f}), "
            f"{values['distance']:.1f} back on average"
        )
