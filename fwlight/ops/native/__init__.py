"""Update rules and DPFP on CPUs in C++, compiled at first use by the machine's own compiler."""

from fwlight.ops.native.build import obstacle
from fwlight.ops.native.delta_read import native_delta_read
from fwlight.ops.native.dpfp import dpfp_can_run, native_dpfp
from fwlight.ops.native.kernels import native_delta_rule, native_fwm_rule, native_sum_rule

__all__ = [
    "dpfp_can_run",
    "native_delta_read",
    "native_delta_rule",
    "native_dpfp",
    "native_fwm_rule",
    "native_sum_rule",
    "obstacle",
]
