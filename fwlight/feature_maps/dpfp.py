"""Deterministic parameter-free projection (DPFP)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fwlight.feature_maps.base import FeatureMap
from fwlight.ops import dpfp_read_weights, native


class DPFPFeatureMap(FeatureMap):
    """Products of rectified coordinates: sparse, non-negative features, d_dot = 2 d nu.

    With r = [relu(x); relu(-x)] of size 2d, block j = 1..nu holds r_i r_{i-j}, indices cyclic in
    2d (Schlag et al. 2021b, eq. 37 and appendix C; eq. 37 writes i + nu, the same features in
    another order). On CPUs it runs in compiled code where the native update rules do, otherwise in
    torch's operators.

    Args:
        nu: Number of blocks, the paper's capacity parameter; from 1 to 2 d - 1.

    Raises:
        ValueError: If `nu` is below 1, or above 2 d - 1 for the head size it meets.
    """

    def __init__(self, nu: int = 1) -> None:
        super().__init__()
        if nu < 1:
            raise ValueError(f"nu={nu} must be at least 1")
        self.nu = nu

    def d_dot(self, d_head: int) -> int:
        """Return 2 d nu."""
        if self.nu > 2 * d_head - 1:
            raise ValueError(f"nu={self.nu} must be at most 2 * d_head - 1 = {2 * d_head - 1}")
        return 2 * d_head * self.nu

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Return the nu blocks of products, concatenated."""
        self.d_dot(x.shape[-1])  # checks nu
        if self._can_run(x):
            return native.native_dpfp(x, self.nu)
        r = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
        blocks = [r * r.roll(j, dims=-1) for j in range(1, self.nu + 1)]
        return blocks[0] if self.nu == 1 else torch.cat(blocks, dim=-1)

    def normalised(
        self, x: Float[Tensor, "b h t d"], norm: str, eps: float
    ) -> Float[Tensor, "b h t k"] | None:
        """Return features over their sum and eps in compiled code, or None where it cannot run."""
        self.d_dot(x.shape[-1])
        compiled = norm == "sum" and self.is_plain() and self._can_run(x)
        return native.native_dpfp(x, self.nu, eps) if compiled else None

    def read_weights(
        self,
        update_rule: Callable[..., Any],
        q: Float[Tensor, "b h k"],
        x: Float[Tensor, "b h t d"],
        beta: Float[Tensor, "b h t"] | None,
        *,
        eps: float | None,
    ) -> Float[Tensor, "b h t"] | None:
        """Return one query's weights in compiled code, or None where it cannot run."""
        if not self.is_plain():
            return None
        return dpfp_read_weights(update_rule, q, x, beta, nu=self.nu, eps=eps)

    def is_plain(self) -> bool:
        """Return whether a subclass has left the map as it is."""
        names = ("forward", "query", "key")
        return all(getattr(type(self), x) is getattr(DPFPFeatureMap, x) for x in names)

    def _can_run(self, x: Tensor) -> bool:
        return self.allow_native and native.can_run(x)

    def extra_repr(self) -> str:
        """Show nu."""
        return f"nu={self.nu}"
