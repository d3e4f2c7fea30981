"""Rotary positions in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import dense, empty_like, launch, operator, sequence


def native_rotary(
    q: Tensor, k: Tensor, cosine: Tensor, sine: Tensor, sign: int = 1
) -> tuple[Tensor, Tensor]:
    """Return pairs (x_i, x_{i + d/2}) of q and k `[B, H, T, d]` turned, with any derivatives.

    Args:
        q: Queries.
        k: As many keys, of the same positions.
        cosine: Of the angles `[T, d/2]`.
        sine: Likewise.
        sign: -1 turns the other way.
    """
    return _run(q, k, cosine, sine, sign)


def _forward(
    q: Tensor, k: Tensor, cosine: Tensor, sine: Tensor, sign: int
) -> tuple[Tensor, Tensor]:
    q, k = dense(q), dense(k)
    turned = empty_like(q), empty_like(k)
    b, h, t, d = q.shape
    sequences = (number for x in (q, k, *turned) for number in sequence(x))
    tables = cosine.data_ptr(), sine.data_ptr(), sign
    sizes = b, h, t, d // 2, torch.get_num_threads()
    launch("fwlight_rotary", q.dtype, *sizes, *sequences, *tables)
    return turned


def _keep(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]
) -> None:
    del output
    _, _, cosine, sine, ctx.sign = inputs
    ctx.save_for_backward(cosine, sine)


def _gradient(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    cosine, sine = ctx.saved_tensors
    return *native_rotary(dq, dk, cosine, sine, -ctx.sign), None, None, None


def _fake(q: Any, k: Any, cosine: Any, sine: Any, sign: int) -> Any:
    del cosine, sine, sign
    return empty_like(dense(q)), empty_like(dense(k))


_run = operator(
    "native_rotary(Tensor q, Tensor k, Tensor cosine, Tensor sine, int sign)"
    " -> (Tensor turned_q, Tensor turned_k)",
    _forward,
    _fake,
    keep=_keep,
    gradient=_gradient,
)
