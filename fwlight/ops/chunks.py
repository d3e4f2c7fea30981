"""Cutting sequences into chunks, for the chunkwise forms.

`split` returns all chunks at once, `[G, N, C, D]`: G = batch times heads, N chunks of C tokens;
`load` returns one of them.
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


def load(x: Tensor, c: int, n: int) -> Tensor:
    """Return chunk n of `[B, H, T, D]`; the last may be shorter.

    It is a view where x is contiguous. Products read views without copies, but write into them by
    way of copies: what is summed up is stored when it is complete.
    """
    return x[:, :, n * c : (n + 1) * c].flatten(0, 1)


def store(chunk: Tensor, x: Tensor, c: int, n: int) -> None:
    """Undo `load` into x."""
    part = x[:, :, n * c : (n + 1) * c]
    part.copy_(chunk.view(part.shape))


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
