"""Whether the memory can hold what it is given, and whether it does."""

from collections import Counter
from typing import Any

from callbacks.watching import LayerWatcher, pooled_values
from fwlight.diagnostics import Statistics, finalise_diagnosis
from fwlight.diagnostics.figures import capacity_figure
from fwlight.diagnostics.layers import Layer
from fwlight.diagnostics.verdict import HEALTHY, OVER_CAPACITY, RULE_LIMITED, in_words

NAMES = {
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
}
"""Name of a scalar -> reported value of `fwlight.diagnostics`."""
ERRORS = {
    "recall_error": "last/error",
    "scaled_recall_error": "last/scaled_error",
    "mean_value_error": "last/mean_error",
    "query_scaled_error": "queries/scaled_error",
}
"""The same, but squared: relative energies, to be held against `best_error` and its limit."""


class MemoryCapacity(LayerWatcher):
    """Logs `memory_capacity/<layer>/...`, and says at the end of training how every layer is.

    All heads are pooled, but `heads_<verdict>` which count them; `fwlight.diagnostics` says what
    the quantities are.

    Args:
        every_n_steps: Steps between two looks.
        sequences: How many of the batch over all processes; None is all.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = "memory_capacity"
    parts = ("capacity",)

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return the pooled values and how many heads have which verdict."""
        values = pooled_values(layer, statistics)
        heads = Counter(finalise_diagnosis(statistics, layer.memory.d_dot).verdicts)
        counts = {
            f"heads_{name.replace(' ', '_').replace('-', '_')}": float(heads[name])
            for name in (HEALTHY, RULE_LIMITED, OVER_CAPACITY)
        }
        plain = {name: float(values[source]) for name, source in NAMES.items()}
        errors = {name: float(values[source]) ** 2 for name, source in ERRORS.items()}
        return plain | {"best_error": float(values["best/error"])} | errors | counts

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return the charts of the dashboard."""
        where = f"{self.tag}/{layer.name}/"
        return {
            "heads by verdict": [f"{where}heads_.*"],
            "errors": [f"{where}(best_error|scaled_recall_error|query_scaled_error)$"],
            "load and utilisation": [f"{where}(load|utilisation)$"],
            "interference": [f"{where}(interference|interference_random)$"],
            "identified": [f"{where}(identified|chance|superseded_identified|query_identified)$"],
        }

    def figure(self) -> Any:
        """Return recall by age and by number of keys, and the verdicts by head."""
        return capacity_figure(self.diagnoses())

    def describe(self, layer: Layer) -> str | None:
        """Return the verdict of the last look in words."""
        whole = pooled_values(layer, self.latest[layer.name])
        return in_words(self.diagnoses()[layer.name].verdicts, whole)
