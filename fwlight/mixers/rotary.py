"""Rotary positions of queries and keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops import native

_BASE = 10_000.0


def rotated(
    x: Float[Tensor, "b h t d"], *, first: int, allow_native: bool = True
) -> Float[Tensor, "b h t d"]:
    """Turn the pairs (x_i, x_{i + d/2}) of position p by the angle p 10000^(-2i/d).

    Products of queries and keys then depend on the distance of their positions alone (Su et al.
    2021, arXiv 2104.09864, eq. 34, the pairs laid out as halves).

    Args:
        x: Queries or keys; d must be even.
        first: Position of the first of them.
        allow_native: Whether compiled code may turn them.
    """
    half = x.shape[-1] // 2
    # No buffer, which a model that is built on the meta device would lose; in float64, as a
    # position of some thousands has no exact angle in less.
    places = torch.arange(first, first + x.shape[2], device=x.device, dtype=torch.float64)
    rates = _BASE ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = places[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if allow_native and native.can_run(x):
        return native.native_rotary(x, cos, sin)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
