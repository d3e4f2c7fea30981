"""How often memories that are kept within the unit ball reach its surface."""

from typing import ClassVar

from callbacks.watching import Part
from fwlight.diagnostics import Statistics, Written
from fwlight.diagnostics.layers import Layer
from fwlight.diagnostics.projection import projection, shrunk_statistics


class Projection(Part):
    """Logs `projection/<layer>/shrunk`: the share of writes after which the norm is projected.

    Of rules that project, as `fwm`; all heads pooled. Arguments as of `Part`.
    """

    tag = "projection"
    names: ClassVar = {"shrunk": "shrunk/mean"}
    charts: ClassVar = {"writes that are shrunk": "shrunk"}

    def watches(self, layer: Layer) -> bool:
        """Whether a layer's rule projects."""
        if layer.is_softmax:
            return False
        memory = layer.memory
        sizes = {"d_dot": memory.d_dot, "d_value": memory.d_value}
        return projection(memory.update_rule, has_beta=memory.has_beta, **sizes) != "none"

    def measure(self, layer: Layer, seen: Written) -> Statistics:
        """Return which writes are shrunk."""
        return shrunk_statistics(seen)
