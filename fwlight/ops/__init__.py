"""Update rules: pure functions that write associations into fast weights and read them.

Every rule has the signature `rule(q, k, v, beta, *, initial_state=None, ...) -> (o, state)`.
"""

from fwlight.ops.backends import allows_native
from fwlight.ops.delta_read import delta_read_weights
from fwlight.ops.delta_rule import delta_rule
from fwlight.ops.fwm_rule import fwm_rule
from fwlight.ops.native import overwriting_states
from fwlight.ops.read_weights import dpfp_read_weights, has_read_weights, read_weights
from fwlight.ops.sum_rule import sum_rule

__all__ = [
    "allows_native",
    "delta_read_weights",
    "delta_rule",
    "dpfp_read_weights",
    "fwm_rule",
    "has_read_weights",
    "overwriting_states",
    "read_weights",
    "sum_rule",
]
