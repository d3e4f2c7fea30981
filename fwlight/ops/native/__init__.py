"""Update rules and what stands around them in C++ on CPUs, by the machine's own compiler."""

from fwlight.ops.native.activations import ACTIVATIONS, native_activation, plain_activation
from fwlight.ops.native.cross_entropy import native_cross_entropy
from fwlight.ops.native.door import (
    OFF,
    absence,
    can_run,
    obstacle,
    switched_off,
    transforms_active,
)
from fwlight.ops.native.dpfp import native_dpfp
from fwlight.ops.native.dropout import native_dropout
from fwlight.ops.native.kernels import (
    native_delta_rule,
    native_fwm_rule,
    native_sum_rule,
    overwriting_states,
)
from fwlight.ops.native.l2_norm import native_l2_norm, plain_l2_norm
from fwlight.ops.native.read import native_delta_read, native_dpfp_read
from fwlight.ops.native.rms_norm import native_rms_norm
from fwlight.ops.native.rotary import native_rotary
from fwlight.ops.native.short_conv import native_short_conv
from fwlight.ops.native.sum_norm import native_sum_norm

__all__ = [
    "ACTIVATIONS",
    "OFF",
    "absence",
    "can_run",
    "native_activation",
    "native_cross_entropy",
    "native_delta_read",
    "native_delta_rule",
    "native_dpfp",
    "native_dpfp_read",
    "native_dropout",
    "native_fwm_rule",
    "native_l2_norm",
    "native_rms_norm",
    "native_rotary",
    "native_short_conv",
    "native_sum_norm",
    "native_sum_rule",
    "obstacle",
    "overwriting_states",
    "plain_activation",
    "plain_l2_norm",
    "switched_off",
    "transforms_active",
]
