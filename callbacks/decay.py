"""How fast the memories forget."""

from callbacks.watching import LayerWatcher, pooled_values
from fwlight.diagnostics import Statistics, finalise_diagnosis
from fwlight.diagnostics.layers import Layer

NAMES = {
    **{f"kept_{x}": f"decay/{x}" for x in ("mean", "p5", "p50", "p95")},
    "half_life": "decay/half_life",
}
"""Name of a scalar -> reported value of `fwlight.diagnostics`."""


class Decay(LayerWatcher):
    """Logs `decay/<layer>/...` of memories that forget, all heads pooled and half-lives by head.

    What is kept is the factor exp(decay_t) on the memory before a write; the half-life, in tokens,
    is that of the mean decay.

    Args:
        every_n_steps: Steps between two looks.
        sequences: How many of the batch over all processes; None is all.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = "decay"
    parts = ("decay",)

    def watches(self, layer: Layer) -> bool:
        """Whether a layer forgets."""
        return "decay" in layer.memory.gates.emits

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return the pooled values, and the half-life of every head."""
        values = pooled_values(layer, statistics)
        heads = finalise_diagnosis(statistics, layer.memory.d_dot).values["decay/half_life"]
        return {name: float(values[source]) for name, source in NAMES.items()} | {
            f"half_life_head{head}": float(x) for head, x in enumerate(heads)
        }

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return the charts of the dashboard."""
        where = f"{self.tag}/{layer.name}/"
        return {
            "what a token keeps": [f"{where}kept_(p5|p50|p95)$"],
            "half-life in tokens": [f"{where}half_life_head.*"],
        }

    def describe(self, layer: Layer) -> str | None:
        """Return the half-lives in words."""
        diagnosis = finalise_diagnosis(self.latest[layer.name], layer.memory.d_dot)
        lives = diagnosis.values["decay/half_life"]
        return f"half of what is stored is left after {lives.min():.3g} to {lives.max():.3g} tokens"
