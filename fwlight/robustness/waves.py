"""Images as sums of waves: Hartley's for changes of one frequency, cosines for spectra."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def hartley(height: int, width: int) -> Float[Tensor, "h w h w"]:
    """Return an orthonormal basis of real waves, by frequency down and across.

    U_ij(y, x) = cas(2 pi (i y / h + j x / w)) / sqrt(h w) with cas = cos + sin: of their discrete
    Fourier transform only (i, j) and (-i, -j) are not 0, as of the basis images of Yin et al.
    (2019, A Fourier perspective on model robustness in computer vision, arXiv 1906.08988).
    """
    down = torch.outer(torch.arange(height), torch.arange(height)).double() / height
    across = torch.outer(torch.arange(width), torch.arange(width)).double() / width
    turns = 2 * math.pi * (down[:, None, :, None] + across[None, :, None, :])
    return ((turns.cos() + turns.sin()) / math.sqrt(height * width)).float()


def dct(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Return the orthonormal discrete cosine transform (type II), low frequencies first."""
    down, across = (_cosines(n).to(x) for n in x.shape[-2:])
    return down @ x @ across.T


def spectrum(changes: Float[Tensor, "b c h w"]) -> Float[Tensor, "h w"]:
    """Return the shares of the energy by frequency, the mean over images."""
    energy = dct(changes).square().sum(1)
    return (energy / energy.sum((1, 2), keepdim=True)).mean(0)


def low_share(shares: Float[Tensor, "h w"]) -> float:
    """Return the share of the energy in the lower half of the frequencies of both directions."""
    h, w = shares.shape
    return float(shares[: (h + 1) // 2, : (w + 1) // 2].sum())


def _cosines(n: int) -> Tensor:
    at = torch.arange(n).double()
    waves = torch.cos(math.pi / n * torch.outer(at, at + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves
