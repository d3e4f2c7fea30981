"""Kernels by which softmax attention weighs keys, beside its own exp(q.k / sqrt d).

Attention is a kernel smoother: weights proportional to kappa(q, k) (Tsai et al. 2019, arXiv
1908.11775; Wright and Gonzalez 2021, arXiv 2106.01506, which compares these kernels).
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Visible = Bool[Tensor, "#b #h #n s"] | None


class Kernel(ABC):
    """Makes weights of queries and keys, which for each query sum to 1.

    Of a query that sees no key all weights are 0.
    """

    @abstractmethod
    def __call__(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"], visible: Visible = None
    ) -> Float[Tensor, "b h n s"]:
        """Return kappa(q, k) over its sum over the keys that a query sees; None: all."""


class ExponentiatedKernel(Kernel):
    """kappa(q, k) = exp(e(q, k))."""

    @abstractmethod
    def exponent(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"]
    ) -> Float[Tensor, "b h n s"]:
        """Return e(q, k), up to what is the same for all keys of a query."""

    def __call__(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"], visible: Visible = None
    ) -> Float[Tensor, "b h n s"]:
        """Return the weights; see `Kernel`."""
        e = self.exponent(q, k)
        if visible is None:
            return e.softmax(-1)
        # Where nothing is seen -inf would give NaN, also in gradients of what is not read.
        e = e.masked_fill(~visible, torch.finfo(e.dtype).min)
        return e.softmax(-1).masked_fill(~visible, 0.0)


class RBF(ExponentiatedKernel):
    """kappa(q, k) = exp(-|q - k|^2 / (2 sqrt d)).

    exp(q.k / sqrt d) is this times exp((|q|^2 + |k|^2) / (2 sqrt d)): it is softmax attention whose
    scores have the bias -|k|^2 / (2 sqrt d), and so do not grow with the length of keys.
    """

    def exponent(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"]
    ) -> Float[Tensor, "b h n s"]:
        """Return (q.k - |k|^2 / 2) / sqrt(d)."""
        return (q @ k.mT - k.square().sum(-1)[..., None, :] / 2) * q.shape[-1] ** -0.5


class _Scaled(ExponentiatedKernel):
    """With a scale, by default sqrt(d)."""

    def __init__(self, scale: float | None = None) -> None:
        if scale is not None and scale <= 0:
            raise ValueError(f"scale={scale:g} must be above 0")
        self._scale = scale

    def divided(self, x: Tensor, d: int) -> Tensor:
        """Return x over the scale."""
        return x / (d**0.5 if self._scale is None else self._scale)


class L2(_Scaled):
    """kappa(q, k) = exp(-|q - k| / scale).

    Args:
        scale: None is sqrt(d).

    Raises:
        ValueError: If it is not above 0.
    """

    def exponent(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"]
    ) -> Float[Tensor, "b h n s"]:
        """Return -|q - k| / scale."""
        # By products of matrices a token alone would be another number than in its row.
        mode = "donot_use_mm_for_euclid_dist"
        return self.divided(-torch.cdist(q, k, compute_mode=mode), q.shape[-1])


class Intersection(_Scaled):
    """kappa(q, k) = exp(sum_i min(q_i, k_i) / scale), negative coordinates being set to 0.

    Args:
        scale: None is sqrt(d).

    Raises:
        ValueError: If it is not above 0.
    """

    def exponent(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"]
    ) -> Float[Tensor, "b h n s"]:
        """Return sum_i min(q_i, k_i) / scale, up to the half of the sum of q."""
        q, k = q.relu(), k.relu()
        # min(a, b) = (a + b - |a - b|) / 2
        twice = k.sum(-1)[..., None, :] - torch.cdist(q, k, p=1.0)
        return self.divided(twice / 2, q.shape[-1])


class Quadratic(Kernel):
    """kappa(q, k) = (c + q.k / sqrt d)^2; see `fwlight.feature_maps.quadratic`.

    Args:
        offset: c.
        eps: Added to the sum of a query's weights, as `read_eps` of fast weights is.

    Raises:
        ValueError: If one of them is negative.
    """

    def __init__(self, offset: float = 0.0, eps: float = 1e-5) -> None:
        for name, value in (("offset", offset), ("eps", eps)):
            if value < 0:
                raise ValueError(f"{name}={value:g} must not be negative")
        self.offset, self.eps = offset, eps

    def __call__(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h s d"], visible: Visible = None
    ) -> Float[Tensor, "b h n s"]:
        """Return the weights; see `Kernel`."""
        kappa = (self.offset + q @ k.mT * q.shape[-1] ** -0.5).square()
        if visible is None:
            return kappa / (kappa.sum(-1, keepdim=True) + self.eps)
        kappa = kappa.masked_fill(~visible, 0.0)
        total = kappa.sum(-1, keepdim=True) + self.eps
        return kappa / torch.where(visible.any(-1, keepdim=True), total, 1.0)
