"""Rotary positions in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import LIBRARY, dense, direct, empty_like, launch, sequence, traced

LIBRARY.define("native_rotary(Tensor x, Tensor cosine, Tensor sine, int sign) -> Tensor")


def native_rotary(x: Tensor, cosine: Tensor, sine: Tensor, sign: int = 1) -> Tensor:
    """Return pairs (x_i, x_{i + d/2}) of x `[B, H, T, d]` turned, any number of derivatives by x.

    Args:
        x: Queries or keys.
        cosine: Of the angles `[T, d/2]`.
        sine: Likewise.
        sign: -1 turns the other way.
    """
    run = torch.ops.fwlight.native_rotary if traced(x) else _direct
    return run(x, cosine, sine, sign)


def _forward(x: Tensor, cosine: Tensor, sine: Tensor, sign: int) -> Tensor:
    x = dense(x)
    y = empty_like(x)
    b, h, t, d = x.shape
    tables = cosine.data_ptr(), sine.data_ptr(), sign
    sizes = b, h, t, d // 2, torch.get_num_threads()
    launch("fwlight_rotary", x.dtype, *sizes, *sequence(x), *sequence(y), *tables)
    return y


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    del output
    _, cosine, sine, ctx.sign = inputs
    ctx.save_for_backward(cosine, sine)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
    cosine, sine = ctx.saved_tensors
    return native_rotary(g, cosine, sine, -ctx.sign), None, None, None


def _fake(x: Any, cosine: Any, sine: Any, sign: int) -> Any:
    del cosine, sine, sign
    return empty_like(dense(x))


_direct = direct("native_rotary", _forward, _keep, _gradient)
LIBRARY.impl("native_rotary", _forward, "CPU")
torch.library.register_fake("fwlight::native_rotary", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_rotary", _gradient, setup_context=_keep, lib=LIBRARY
)
