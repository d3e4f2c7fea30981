"""What a memory does, measured: pure functions of the tensors that its operator used.

Statistics of shards are added by `merge` and become reported values in a `finalise_*` function.
"""

from fwlight.diagnostics.attached import Attached, attach
from fwlight.diagnostics.beta import (
    TokenBeta,
    beta_statistics,
    beta_values,
    finalise_tokens,
    token_statistics,
)
from fwlight.diagnostics.capacity import (
    Clusters,
    capacity_statistics,
    cluster_keys,
    crosstalk,
    random_interference,
)
from fwlight.diagnostics.diagnose import (
    Diagnosis,
    diagnose,
    diagnosis_statistics,
    finalise_diagnosis,
)
from fwlight.diagnostics.measured import measured_capacity
from fwlight.diagnostics.norms import (
    StateNorms,
    WriteNorms,
    effective_rank,
    norm_statistics,
    old_values,
    state_norms,
    states_along,
    write_norms,
    write_norms_of_states,
)
from fwlight.diagnostics.recall import (
    Recall,
    finalise_recall,
    nearest_writes,
    read_state,
    recall,
    recall_statistics,
)
from fwlight.diagnostics.statistics import Statistics, describe, merge, summarise
from fwlight.diagnostics.verdict import best_error, best_errors, best_statistics, verdicts
from fwlight.diagnostics.written import Written

__all__ = [
    "Attached",
    "Clusters",
    "Diagnosis",
    "Recall",
    "StateNorms",
    "Statistics",
    "TokenBeta",
    "WriteNorms",
    "Written",
    "attach",
    "best_error",
    "best_errors",
    "best_statistics",
    "beta_statistics",
    "beta_values",
    "capacity_statistics",
    "cluster_keys",
    "crosstalk",
    "describe",
    "diagnose",
    "diagnosis_statistics",
    "effective_rank",
    "finalise_diagnosis",
    "finalise_recall",
    "finalise_tokens",
    "measured_capacity",
    "merge",
    "nearest_writes",
    "norm_statistics",
    "old_values",
    "random_interference",
    "read_state",
    "recall",
    "recall_statistics",
    "state_norms",
    "states_along",
    "summarise",
    "token_statistics",
    "verdicts",
    "write_norms",
    "write_norms_of_states",
]
