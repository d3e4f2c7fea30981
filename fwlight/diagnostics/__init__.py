"""What a memory does, measured: pure functions of the tensors that its operator used.

Statistics of shards are added by `merge` and become reported values in a `finalise_*` function.
"""

from fwlight.diagnostics.norms import (
    StateNorms,
    WriteNorms,
    effective_rank,
    finalise_norms,
    norm_statistics,
    old_values,
    state_norms,
    states_along,
    write_norms,
)
from fwlight.diagnostics.statistics import Statistics, describe, merge, summarise

__all__ = [
    "StateNorms",
    "Statistics",
    "WriteNorms",
    "describe",
    "effective_rank",
    "finalise_norms",
    "merge",
    "norm_statistics",
    "old_values",
    "state_norms",
    "states_along",
    "summarise",
    "write_norms",
]
