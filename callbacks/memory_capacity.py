"""Whether the memory can hold what it is given, and whether it does."""

from collections import Counter
from typing import Any, ClassVar

from callbacks.watching import Part
from fwlight.diagnostics import Statistics, Written
from fwlight.diagnostics.diagnose import memory_capacity
from fwlight.diagnostics.figures import capacity_figure
from fwlight.diagnostics.layers import Found, Layer
from fwlight.diagnostics.verdict import HEALTHY, OVER_CAPACITY, RULE_LIMITED, in_words

ERRORS = {
    "recall_error": "last/error",
    "scaled_recall_error": "last/scaled_error",
    "mean_value_error": "last/mean_error",
    "query_scaled_error": "queries/scaled_error",
}
"""As `names`, but squared: relative energies, to be held against `best_error` and its limit."""


class MemoryCapacity(Part):
    """Logs `memory_capacity/<layer>/...`, and says at the end of training how every layer is.

    All heads are pooled, but `heads_<verdict>` which count them; `fwlight.diagnostics` says what
    the quantities are. Arguments as of `Part`.
    """

    tag = "memory_capacity"
    names: ClassVar = {
        "load": "load/mean",
        "position_load": "position_load/mean",
        "utilisation": "utilisation/mean",
        "interference": "interference/mean",
        "interference_p95": "interference/p95",
        "interference_random": "interference/random_mean",
        "crosstalk": "crosstalk/mean",
        "identified": "last/identified",
        "chance": "last/chance",
        "superseded_identified": "superseded/identified",
        "query_identified": "queries/identified",
        "best_error": "best/error",
    }
    main: ClassVar = ("best_error", "scaled_recall_error")
    charts: ClassVar = {
        "heads by verdict": "heads_.*",
        "errors": "(best_error|scaled_recall_error|query_scaled_error)",
        "load and utilisation": "(load|utilisation)",
        "interference": "(interference|interference_random)",
        "identified": "(identified|chance|superseded_identified|query_identified)",
    }

    def measure(self, layer: Layer, seen: Written) -> Statistics:
        """Return load, interference and recall."""
        return memory_capacity(seen)

    def scalars(self, found: Found) -> dict[str, float]:
        """Return the pooled values and how many heads have which verdict."""
        heads = Counter(found.heads.verdicts)
        counts = {
            f"heads_{name.replace(' ', '_').replace('-', '_')}": float(heads[name])
            for name in (HEALTHY, RULE_LIMITED, OVER_CAPACITY)
        }
        errors = {name: float(found.whole[source]) ** 2 for name, source in ERRORS.items()}
        return super().scalars(found) | errors | counts

    def figure(self) -> Any:
        """Return recall by age and by number of keys, and the verdicts by head."""
        return capacity_figure(self.latest)

    def describe(self, found: Found) -> str:
        """Return the verdict of the last look in words."""
        return in_words(found.heads.verdicts, found.whole)
