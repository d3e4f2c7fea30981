"""Cutting sequences into chunks, for the chunkwise forms.

What `split` returns is `[G, N, C, D]`: G = batch times heads, N chunks of C tokens.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (Function.apply carries no types)

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.functional import pad

CHUNK_SIZE = 64
"""Longest chunk. On a CPU 32 and 64 are equally fast within the noise of a measurement, 16 and 128
slower; 64 keeps half as many states for the backward pass and suits tensor cores."""


def chunk_length(t: int, chunk_size: int) -> int:
    """Return the length up to `chunk_size` of chunks of which the last is hardly shorter."""
    return math.ceil(t / math.ceil(t / chunk_size))


def split(x: Tensor, c: int) -> Tensor:
    """Cut `[B, H, T, D]` into chunks; zeros, which write nothing, fill the last one."""
    missing = -x.shape[2] % c
    return (pad(x, (0, 0, 0, missing)) if missing else x).flatten(0, 1).unflatten(1, (-1, c))


def join(x: Tensor, like: Tensor) -> Tensor:
    """Undo `split` for the sequences of `like`, `[B, H, T, ...]`."""
    b, h, t = like.shape[:3]
    return x.flatten(1, 2)[:, :t].unflatten(0, (b, h))


def refuse_second_derivative() -> None:
    """Raise where a backward pass is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the chunkwise form has first derivatives only (create_graph=True was asked for); "
            "use backend='recurrent'"
        )


def apply(function: type[Function], *args: Any) -> tuple[Tensor | None, Tensor]:
    """Call an autograd function that returns (o, S_T)."""
    return function.apply(*args)
