"""Softmax over the features of a vector."""

from jaxtyping import Float
from torch import Tensor

from fwlight.feature_maps.base import FeatureMap


class SoftmaxFeatureMap(FeatureMap):
    """phi(x) = softmax(x): positive features of sum 1 (Irie et al. 2021, arXiv 2106.06295)."""

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return softmax(x)."""
        return x.softmax(-1)
