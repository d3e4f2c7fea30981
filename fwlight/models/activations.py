"""What stands between the products of a feed-forward layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwlight.checks import check_choice
from fwlight.ops import native

WORTH_IT = 16384
"""Numbers from which on compiled code is faster than torch's operators."""


class Activation(nn.Module):
    """ReLU, GELU (Hendrycks and Gimpel 2016) or SwiGLU, silu(a) b of halves (Shazeer 2020).

    On a CPU with a C++ compiler in compiled code, in float32 to 2e-7 of the input's size.

    Args:
        kind: One of `fwlight.ops.native.ACTIVATIONS`.

    Raises:
        ValueError: If it is none of them.
    """

    allow_native = True
    """Whether compiled code may compute it; see `fwlight.models.dropout.follow_mixers`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        check_choice("feed_forward", kind, native.ACTIVATIONS)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to `[..., n]`; SwiGLU halves n."""
        compiled = x.numel() >= WORTH_IT and self.allow_native and native.can_run(x)
        return (native.native_activation if compiled else native.plain_activation)(x, self.kind)

    def after(self, linear: nn.Module, x: Tensor) -> Tensor:
        """Return `self(linear(x))`, where that is faster with the bias added here."""
        apart = (
            type(linear) is not nn.Linear  # one of somebody else's, such as an adapter
            or linear.bias is None
            or x.numel() // linear.in_features * linear.out_features < WORTH_IT
            or not (self.allow_native and native.can_run(x))
            or torch.is_autocast_enabled("cpu")
            or len(linear._forward_hooks) + len(linear._forward_pre_hooks)
        )
        if apart:
            return self(linear(x))
        assert isinstance(linear, nn.Linear)
        return native.native_activation(F.linear(x, linear.weight), self.kind, linear.bias)

    def extra_repr(self) -> str:
        """Show the kind."""
        return self.kind
