"""Feature maps that act on each coordinate by itself: d_dot = d_head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fwlight.feature_maps.base import FeatureMap
from fwlight.ops import native


class IdentityFeatureMap(FeatureMap):
    """phi(x) = x."""

    signed = True

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return `x` itself."""
        return x


class EluFeatureMap(FeatureMap):
    """phi(x) = elu(x) + 1 = x + 1 if x > 0 else exp(x) (Katharopoulos et al. 2020, eq. 7).

    Computed as max(x, 0) + exp(min(x, 0)): elu(x) + 1 itself rounds to 0 at x = -8 in bfloat16, and
    exp(x) overflows where x is large. A choice by comparison costs a CPU ten times as much.
    """

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return elu(x) + 1."""
        positive = F.relu(x)
        return positive + torch.exp(x - positive)


class ReLUFeatureMap(FeatureMap):
    """phi(x) = max(x, 0)."""

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return relu(x)."""
        return F.relu(x)


class TanhFeatureMap(FeatureMap):
    """phi(x) = tanh(x), signed; the map of the fast weight memory (Schlag et al. 2021a)."""

    signed = True

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return tanh(x)."""
        return torch.tanh(x)


class SiLUFeatureMap(FeatureMap):
    """phi(x) = x sigmoid(x), signed; the map of DeltaNet (Yang et al. 2024, sec. 3.4)."""

    signed = True

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return silu(x)."""
        return F.silu(x)

    def normalised(
        self, x: Float[Tensor, "b h t d"], norm: str, eps: float
    ) -> Float[Tensor, "b h t d"] | None:
        """Return features of unit length in compiled code, or None where it cannot run."""
        plain = type(self).forward is SiLUFeatureMap.forward
        if norm in ("l2", "l2_smooth") and plain and self.allow_native and native.can_run(x):
            return native.native_l2_norm(x, eps, smooth=norm == "l2_smooth", silu=True)
        return None
