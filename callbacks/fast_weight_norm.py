"""How large the fast weights are and how much every write changes them."""

from typing import Any, ClassVar

from callbacks.watching import Part
from fwlight.diagnostics import StateNorms, Statistics, WriteNorms, Written
from fwlight.diagnostics.diagnose import memory_norms
from fwlight.diagnostics.figures import norms_figure
from fwlight.diagnostics.layers import Layer


class FastWeightNorm(Part):
    """Logs `fast_weight_norm/<layer>/...`, means over heads, sequences and writes.

    Norms are those of the state after the sequence, of writes those of every position; see
    `fwlight.diagnostics.StateNorms` and `WriteNorms`.

    Args:
        every_n_steps: As of `Part`.
        sequences: As of `Part`.
        p: Exponent of the mixed norm over features, at least 1.
        q: Exponent of the mixed norm over values, at least 1.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = "fast_weight_norm"
    names: ClassVar = {name: f"{name}/mean" for name in (*StateNorms._fields, *WriteNorms._fields)}
    main: ClassVar = ("frobenius", "effective_rank")
    charts: ClassVar = {
        "norms of the state": "(frobenius|spectral)",
        "ranks of the state": "(stable_rank|effective_rank)",
        "norms of a write": f"({'|'.join(WriteNorms._fields)})",
    }

    def __init__(
        self, *, every_n_steps: int = 200, sequences: int | None = 4, p: float = 2.0, q: float = 1.0
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, sequences=sequences)
        for name, value in (("p", p), ("q", q)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.mixed = (p, q)

    def measure(self, layer: Layer, seen: Written) -> Statistics:
        """Return the norms."""
        return memory_norms(seen, mixed=self.mixed)

    def figure(self) -> Any:
        """Return growth by position, and the norms by head."""
        return norms_figure(self.latest)
