"""Twelve corruptions of CIFAR-10-C, each at its five severities.

(Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions and
perturbations, arXiv 1903.12261.) Values are in [0, 1]. Lengths are in pixels of an image of
32 x 32 and scale with the side of other ones, see `fwlight.robustness.blurs`; the distance over
which glass moves pixels is at least one, so that it does more to smaller images. Everything else is
a share of the image or of a value and needs no scaling. Here values stay numbers, where
CIFAR-10-C's are rounded to bytes.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor

from fwlight.robustness.blurs import SIDE, defocused, moved, smoothed

SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 4
"""Pixels of the shortest side that all corruptions have a meaning for."""


def corrupt(
    images: Float[Tensor, "b c h w"], name: str, severity: int, *, seed: int
) -> Float[Tensor, "b c h w"]:
    """Return corrupted images.

    What is drawn at random depends on `name` and `seed` alone: all severities have the same noise,
    more of it.

    Args:
        images: Values in [0, 1], with one channel or three.
        name: One of `CORRUPTIONS`.
        severity: One of `SEVERITIES`.
        seed: Of what is random.
    """
    kind = CORRUPTIONS[name]
    drawn = Generator().manual_seed(1000 * seed + list(CORRUPTIONS).index(name))
    made = kind.make(images.cpu(), drawn, *kind.values[severity - 1])
    return made.clamp(0, 1).to(images)


def gaussian_noise(x: Tensor, drawn: Generator, sigma: int | float) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`."""
    return x + sigma * torch.randn(x.shape, generator=drawn)


def shot_noise(x: Tensor, drawn: Generator, photons: int | float) -> Tensor:
    """Count photons, `photons` of them where the value is 1."""
    return torch.poisson(x * photons, generator=drawn) / photons


def impulse_noise(x: Tensor, drawn: Generator, share: int | float) -> Tensor:
    """Set a share of the values to 0 or 1, half of it to each."""
    chance = torch.rand(x.shape, generator=drawn)
    return torch.where((chance - 0.5).abs() > (1 - share) / 2, (chance > 0.5).to(x), x)


def defocus_blur(x: Tensor, drawn: Generator, radius: int | float, alias: int | float) -> Tensor:
    """See `defocused`."""
    return defocused(x, radius, alias)


def glass_blur(
    x: Tensor, drawn: Generator, sigma: int | float, delta: int | float, times: int
) -> Tensor:
    """Smooth, exchange pixels with ones up to `delta` away, from the last to the first, smooth."""
    x = smoothed(x, sigma)
    b, _, h, w = x.shape
    delta = max(1, round(delta * min(h, w) / SIDE))
    each = torch.arange(b)
    for _ in range(times):
        for i in range(h - delta, delta, -1):
            for j in range(w - delta, delta, -1):
                down, right = torch.randint(-delta, delta, (2, b), generator=drawn)
                there, here = x[each, :, i + down, j + right], x[:, :, i, j].clone()
                x[:, :, i, j] = there
                x[each, :, i + down, j + right] = here
    return smoothed(x, sigma)


def motion_blur(x: Tensor, drawn: Generator, radius: int | float, sigma: int | float) -> Tensor:
    """Blur towards a side, within 45 degrees of the right; see `moved`."""
    angles = torch.empty(len(x)).uniform_(-math.pi / 4, math.pi / 4, generator=drawn)
    return moved(x, radius, sigma, angles)


def zoom_blur(x: Tensor, drawn: Generator, most: int | float) -> Tensor:
    """Mean of the image and of itself enlarged 1, 1.01, 1.02, ... `most` times."""
    factors = [1 + i / 100 for i in range(round(100 * (most - 1)) + 1)]
    total = x.clone()
    for factor in factors:
        shrink = torch.eye(2, 3).div(factor).expand(len(x), -1, -1)
        grid = F.affine_grid(shrink, list(x.shape), align_corners=False)
        total += F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return total / (len(factors) + 1)


def fog(x: Tensor, drawn: Generator, thickness: int | float, decay: int | float) -> Tensor:
    """Add a random cloud and keep the largest value of every image."""
    h, w = x.shape[-2:]
    cloud = clouds(len(x), max(h, w), decay=decay, drawn=drawn)[:, None, :h, :w]
    largest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * cloud) * largest / (largest + thickness)


def brightness(x: Tensor, drawn: Generator, more: int | float) -> Tensor:
    """Add to the value of a colour in HSV, which is its largest channel, and leave hue and chroma.

    Saturation and hue stay, so that a colour is multiplied, and black becomes grey.
    """
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-12), brighter)


def contrast(x: Tensor, drawn: Generator, factor: int | float) -> Tensor:
    """Take every channel of an image towards its mean."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def pixelate(x: Tensor, drawn: Generator, factor: int | float) -> Tensor:
    """Fewer pixels, each the mean of those in it, and back to as many as before."""
    down, across = (_box(n, int(n * factor)) for n in x.shape[-2:])
    back, along = (_box(int(n * factor), n) for n in x.shape[-2:])
    return back @ down @ x @ across.T @ along.T


def jpeg(x: Tensor, drawn: Generator, quality: int) -> Tensor:
    """Compress and read again, by Pillow."""
    read = []
    for image in (255 * x).round().byte().movedim(1, -1).numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=quality
        )
        read.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(read)).movedim(-1, 1).to(x) / 255


def clouds(n: int, side: int, *, decay: int | float, drawn: Generator) -> Float[Tensor, "n s s"]:
    """Return random landscapes in [0, 1], made on a torus by the diamond-square algorithm.

    Args:
        n: How many.
        side: The least side; it becomes a power of two.
        decay: The heights that are drawn are smaller by its square with each halving of the step.
        drawn: Gives the heights.
    """
    size = 1 << (side - 1).bit_length()
    land, step, height = torch.zeros(n, size, size), size, 1.0

    def rough(total: Tensor) -> Tensor:
        noise = torch.empty_like(total).uniform_(-1, 1, generator=drawn)
        return total / 4 + height * noise

    while step >= 2:
        half = step // 2
        corners = land[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        middles = rough(rows + rows.roll(-1, 2))
        land[:, half::step, half::step] = middles
        above = corners + corners.roll(-1, 2) + middles + middles.roll(1, 1)
        beside = corners + corners.roll(-1, 1) + middles + middles.roll(1, 2)
        land[:, ::step, half::step] = rough(above)
        land[:, half::step, ::step] = rough(beside)
        step, height = half, height / decay**2
    land -= land.amin((1, 2), keepdim=True)
    return land / land.amax((1, 2), keepdim=True)


def _box(old: int, new: int) -> Tensor:
    """Return what takes `old` pixels to `new` ones `[new, old]`: those whose middles lie within."""
    scale = old / new
    middles = (torch.arange(new) + 0.5) * scale
    away = (torch.arange(old) + 0.5 - middles[:, None]) / max(1.0, scale)
    inside = ((away > -0.5) & (away <= 0.5)).float()
    return inside / inside.sum(1, keepdim=True)


class Corruption(NamedTuple):
    """One kind of corruption."""

    make: Callable[..., Tensor]
    """Of images, a generator and values."""
    values: tuple[tuple[int | float, ...], ...]
    """Those of every severity."""


def _each(*values: int | float) -> tuple[tuple[int | float, ...], ...]:
    return tuple((value,) for value in values)


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, _each(500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass_blur": Corruption(
        glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    ),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, _each(1.05, 1.10, 1.15, 1.20, 1.25)),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": Corruption(jpeg, _each(80, 65, 58, 50, 40)),
}
