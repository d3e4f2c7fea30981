"""How softmax attention looks back, in the dashboard of the memories it is compared with."""

from typing import ClassVar

from callbacks.watching import Part
from fwlight.diagnostics import Statistics
from fwlight.diagnostics.layers import Found, Layer
from fwlight.diagnostics.softmax import QUANTITIES, Attended, softmax_statistics


class SoftmaxAttention(Part):
    """Logs `softmax_attention/<layer>/{entropy,span,distance}...`, all heads pooled.

    Arguments as of `Part`.
    """

    tag = "softmax_attention"
    names: ClassVar = {name: f"{name}/mean" for name in QUANTITIES} | {
        f"{name}_{p}": f"{name}/{p}" for name in QUANTITIES for p in ("p5", "p95")
    }
    main: ClassVar = ("entropy", "span")
    charts: ClassVar = {
        "entropy of attention": "entropy(_p5|_p95)?",
        "positions attended to": "span(_p5|_p95)?",
    }

    def watches(self, layer: Layer) -> bool:
        """Whether it is softmax attention."""
        return layer.is_softmax

    def measure(self, layer: Layer, seen: Attended) -> Statistics:
        """Return how every query looks back."""
        return softmax_statistics(seen)

    def describe(self, found: Found) -> str:
        """Return how it looks back, in words."""
        values = self.scalars(found)
        return (
            f"softmax attention over {values['span']:.1f} positions "
            f"({values['span_p5']:.1f} to {values['span_p95']:.1f}), "
            f"{values['distance']:.1f} back on average"
        )
