"""All products of two coordinates: the features of the quadratic kernel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fwlight.feature_maps.base import FeatureMap


class QuadraticFeatureMap(FeatureMap):
    """phi(x).phi(y) = (c + x.y / sqrt(d))^2, in d(d+1)/2 features, or (d+1)(d+2)/2 with a c.

    With u = [x / d^(1/4); sqrt(c)] they are u_i^2, and sqrt(2) u_i u_j of i < j (the polynomial
    kernel of degree 2; in attention: Wright and Gonzalez 2021, arXiv 2106.01506).

    Args:
        offset: c; 0 leaves out the features that it adds.

    Raises:
        ValueError: If it is negative.
    """

    signed = True
    nonnegative_kernel = True

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        if offset < 0:
            raise ValueError(f"offset={offset:g} must not be negative")
        self.offset = offset

    def d_dot(self, d_head: int) -> int:
        """Return n(n+1)/2 with n = d, or d + 1 with an offset."""
        n = d_head + (self.offset > 0)
        return n * (n + 1) // 2

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Return the squares and products, by i, then by j from i on."""
        u = x * x.shape[-1] ** -0.25
        if self.offset:
            u = F.pad(u, (0, 1), value=self.offset**0.5)
        i, j = torch.triu_indices(u.shape[-1], u.shape[-1], device=x.device).unbind()
        scale = x.new_full(i.shape, 2**0.5).masked_fill(i == j, 1.0)
        return u[..., i] * u[..., j] * scale

    def extra_repr(self) -> str:
        """Show the offset."""
        return f"offset={self.offset:g}"
