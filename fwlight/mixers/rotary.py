"""Rotary positions of queries and keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops import native
from fwlight.tables import kept

_BASE = 10_000.0


def rotated(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    *,
    first: int,
    allow_native: bool = True,
) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t d"]]:
    """Turn the pairs (x_i, x_{i + d/2}) of position p by the angle p 10000^(-2i/d).

    Products of queries and keys then depend on the distance of their positions alone (Su et al.
    2021, arXiv 2104.09864, eq. 34, the pairs laid out as halves).

    Args:
        q: Queries; d must be even.
        k: Keys of the same positions.
        first: Position of the first of them.
        allow_native: Whether compiled code may turn them.
    """
    half = q.shape[-1] // 2
    cos, sin = _tables(first, q.shape[2], half, q.device, q.dtype)
    if allow_native and native.can_run(q):
        return native.native_rotary(q, k, cos, sin)

    def turned(x: Tensor) -> Tensor:
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    return turned(q), turned(k)


@kept
def _tables(
    first: int, count: int, half: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # No buffer, which a model that is built on the meta device would lose; in float64, as a
    # position of some thousands has no exact angle in less.
    places = torch.arange(first, first + count, device=device, dtype=torch.float64)
    rates = _BASE ** -(torch.arange(half, device=device, dtype=torch.float64) / half)
    angles = places[:, None] * rates
    return angles.cos().to(dtype), angles.sin().to(dtype)
