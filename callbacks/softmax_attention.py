"""How softmax attention looks back, in the dashboard of the memories it is compared with."""

from callbacks.watching import LayerWatcher
from fwlight.diagnostics import Statistics
from fwlight.diagnostics.layers import Layer, pooled
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

    def watches(self, layer: Layer) -> bool:
        """Whether it is softmax attention."""
        return layer.is_softmax

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
