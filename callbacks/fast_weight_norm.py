"""How large the fast weights are and how much every write changes them."""

from typing import Any

from callbacks.watching import LayerWatcher, pooled_values
from fwlight.diagnostics import Statistics
from fwlight.diagnostics.figures import norms_figure
from fwlight.diagnostics.layers import Layer, Sequences, Watcher, layer_statistics

NORMS = ("frobenius", "spectral", "stable_rank", "effective_rank", "mixed")
WRITES = ("insert", "remove", "change")


class FastWeightNorm(LayerWatcher):
    """Logs `fast_weight_norm/<layer>/...`, means over heads, sequences and writes.

    Norms are those of the state after the sequence, of writes those of every position; see
    `fwlight.diagnostics.StateNorms` and `WriteNorms`.

    Args:
        every_n_steps: Steps between two looks.
        sequences: How many of the batch over all processes; None is all.
        p: Exponent of the mixed norm over features, at least 1.
        q: Exponent of the mixed norm over values, at least 1.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = "fast_weight_norm"
    parts = ("norms",)

    def __init__(
        self, *, every_n_steps: int = 200, sequences: int | None = 4, p: float = 2.0, q: float = 1.0
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, sequences=sequences)
        for name, value in (("p", p), ("q", q)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.mixed = (p, q)

    def measure(self, layer: Layer, watcher: Watcher, of: Sequences) -> Statistics:
        """Return the norms."""
        return layer_statistics(layer, watcher, of=of, parts=self.parts, mixed=self.mixed)

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return means."""
        values = pooled_values(layer, statistics)
        return {name: float(values[f"{name}/mean"]) for name in (*NORMS, *WRITES)}

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return the charts of the dashboard."""
        where = f"{self.tag}/{layer.name}/"
        return {
            "norms of the state": [f"{where}({'|'.join(NORMS[:2])})$"],
            "ranks of the state": [f"{where}({'|'.join(NORMS[2:4])})$"],
            "norms of a write": [f"{where}({'|'.join(WRITES)})$"],
        }

    def figure(self) -> Any:
        """Return growth by position, and the norms by head."""
        return norms_figure({name: x.values for name, x in self.diagnoses().items()})
