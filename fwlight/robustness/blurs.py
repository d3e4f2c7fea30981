"""Blurs with the kernels of 32 x 32 pixels, scaled with the side of an image.

A kernel is a list of places, relative to the pixel that is computed, with a weight each. For
images whose shorter side is below 32 the places are multiplied by side / 32, and each weight is
shared linearly between the pixels around its place; for larger ones the kernel is made with all its
lengths multiplied by that. Pixels beyond an edge are those of the edge.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIDE = 32
"""The side in pixels of the images that all lengths are of."""


def defocused(x: Float[Tensor, "b c h w"], radius: int | float, alias: int | float) -> Tensor:
    """Mean over the pixels within `radius`, the disk softened by a Gaussian of 3 x 3 pixels."""
    wide, narrow = _scales(x)
    reach = math.ceil(radius * wide)
    at = torch.arange(-reach, reach + 1.0)
    disk = (at[:, None] ** 2 + at**2 <= (radius * wide) ** 2).float()
    soft = _gaussian(alias * wide, reach=round(wide))
    softened = F.conv2d(disk[None, None], soft[None, None], padding=2 * (len(soft) // 2))[0, 0]
    return _blurred(x, _narrowed(softened / softened.sum(), narrow))


def smoothed(x: Float[Tensor, "b c h w"], sigma: int | float) -> Tensor:
    """Blur with a Gaussian, cut at four of its standard deviations."""
    wide, narrow = _scales(x)
    kernel = _gaussian(sigma * wide, reach=int(4 * sigma * wide + 0.5))
    return _blurred(x, _narrowed(kernel, narrow))


def moved(
    x: Float[Tensor, "b c h w"], radius: int | float, sigma: int | float, angles: Tensor
) -> Tensor:
    """Blur towards one side, each image in a direction of its own.

    The weights are those of half of a Gaussian over 2 radius + 1 steps of a pixel, as ImageMagick's
    -motion-blur has them.

    Args:
        x: The images.
        radius: Half of the number of steps.
        sigma: Standard deviation of the Gaussian.
        angles: Directions `[b]` in radians.
    """
    wide, narrow = _scales(x)
    steps = torch.arange(2 * round(radius * wide) + 1.0)
    weights = torch.softmax(-0.5 * (steps / (sigma * wide)) ** 2, dim=0)
    towards = torch.stack((angles.sin(), angles.cos()), dim=-1)
    places = narrow * steps[:, None] * towards[:, None]
    return _blurred(x, _kernel(places, weights.expand(len(x), -1)))


def _scales(x: Tensor) -> tuple[float, float]:
    """Return what lengths are multiplied by before a kernel is made, and places after it."""
    scale = min(x.shape[-2:]) / SIDE
    return max(1.0, scale), min(1.0, scale)


def _gaussian(sigma: int | float, *, reach: int) -> Tensor:
    at = torch.arange(-reach, reach + 1.0)
    row = torch.softmax(-0.5 * (at / sigma) ** 2, dim=0)
    return row[:, None] * row


def _narrowed(kernel: Float[Tensor, "k k"], factor: int | float) -> Tensor:
    at = factor * (torch.arange(len(kernel)) - len(kernel) // 2)
    return _kernel(torch.cartesian_prod(at, at), kernel.flatten())


def _kernel(places: Float[Tensor, "*b n 2"], weights: Float[Tensor, "*b n"]) -> Tensor:
    """Share weights at places (down, right) between the pixels around them: `[*b k k]`."""
    reach = math.ceil(float(places.abs().max()))
    near = places[..., None] - torch.arange(-reach, reach + 1.0)
    down, right = (1 - near.abs()).clamp(min=0).unbind(-2)
    return torch.einsum("...n,...np,...nq->...pq", weights, down, right)


def _blurred(x: Float[Tensor, "b c h w"], kernel: Float[Tensor, "*b k k"]) -> Tensor:
    b, c, h, w = x.shape
    reach = kernel.shape[-1] // 2
    padded = F.pad(x, [reach] * 4, mode="replicate").reshape(1, b * c, h + 2 * reach, -1)
    each = kernel.expand(b, *kernel.shape[-2:]).repeat_interleave(c, 0)[:, None]
    return F.conv2d(padded, each.to(x), groups=b * c).view(b, c, h, w)
