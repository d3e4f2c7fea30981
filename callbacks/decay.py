"""How fast the memories forget."""

from typing import ClassVar

from callbacks.watching import Part
from fwlight.diagnostics import Statistics, Written
from fwlight.diagnostics.decay import decay_statistics
from fwlight.diagnostics.layers import Found, Layer


class Decay(Part):
    """Logs `decay/<layer>/...` of memories that forget, all heads pooled and half-lives by head.

    What is kept is the factor exp(decay_t) on the memory before a write; the half-life, in tokens,
    is that of the mean decay. Arguments as of `Part`.
    """

    tag = "decay"
    names: ClassVar = {
        **{f"kept_{x}": f"decay/{x}" for x in ("mean", "p5", "p50", "p95")},
        "half_life": "decay/half_life",
    }
    main: ClassVar = ("half_life",)
    charts: ClassVar = {
        "what a token keeps": "kept_(p5|p50|p95)",
        "half-life in tokens": "half_life(_head.*)?",
    }

    def watches(self, layer: Layer) -> bool:
        """Whether a layer forgets."""
        return "decay" in layer.memory.gates.emits

    def measure(self, layer: Layer, seen: Written) -> Statistics:
        """Return the statistics of the factors."""
        return decay_statistics(seen.gates["decay"], padding_mask=seen.padding_mask)

    def scalars(self, found: Found) -> dict[str, float]:
        """Return the pooled values, and the half-life of every head."""
        lives = found.heads.values["decay/half_life"]
        of_heads = {f"half_life_head{head}": float(x) for head, x in enumerate(lives)}
        return super().scalars(found) | of_heads

    def describe(self, found: Found) -> str:
        """Return the half-lives in words."""
        lives = found.heads.values["decay/half_life"]
        return f"half of what is stored is left after {lives.min():.3g} to {lives.max():.3g} tokens"
