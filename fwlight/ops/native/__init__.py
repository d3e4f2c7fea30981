"""Update rules on CPUs in C++, compiled at first use by the machine's own compiler."""

from fwlight.ops.native.build import obstacle
from fwlight.ops.native.kernels import native_delta_rule, native_fwm_rule, native_sum_rule

__all__ = ["native_delta_rule", "native_fwm_rule", "native_sum_rule", "obstacle"]
