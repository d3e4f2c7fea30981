"""Vectors at unit length, perhaps after SiLU, in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.ops.native.launch import (
    LIBRARY,
    bits,
    dense,
    direct,
    empty_like,
    launch,
    sequence,
    traced,
)

LEAST = 1e-12

LIBRARY.define(
    "native_l2_norm(Tensor x, float eps, bool smooth, bool silu) -> (Tensor y, Tensor factor)"
)
LIBRARY.define(
    "native_l2_norm_backward(Tensor g, Tensor x, Tensor factor, float eps, bool smooth, bool silu)"
    " -> Tensor"
)


def native_l2_norm(x: Tensor, eps: float, *, smooth: bool = False, silu: bool = False) -> Tensor:
    """Return s / max(|s|, eps) of vectors x `[B, H, T, D]`, any number of derivatives.

    Args:
        x: Vectors.
        eps: At least `LEAST`, which is taken for anything less.
        smooth: Divide by sqrt(|s|^2 + eps) instead.
        silu: s = silu(x) instead of x.
    """
    run = torch.ops.fwlight.native_l2_norm if traced(x) else _direct
    return run(x, max(eps, LEAST), smooth, silu)[0]


def plain_l2_norm(x: Tensor, eps: float, *, smooth: bool = False, silu: bool = False) -> Tensor:
    """Return the same by torch's operators."""
    eps = max(eps, LEAST)
    s = F.silu(x) if silu else x
    if smooth:
        return s * torch.rsqrt(s.square().sum(-1, keepdim=True) + eps)
    return F.normalize(s, dim=-1, eps=eps)


def _forward(x: Tensor, eps: float, smooth: bool, silu: bool) -> tuple[Tensor, Tensor]:
    x = dense(x)
    y, factor = empty_like(x), x.new_empty(x.shape[:3])
    _launch(x, None, y, factor, eps, smooth, silu)
    return y, factor


def _backward(g: Tensor, x: Tensor, factor: Tensor, eps: float, smooth: bool, silu: bool) -> Tensor:
    g, x = dense(g), dense(x)
    dx = empty_like(x)
    _launch(x, g, dx, factor, eps, smooth, silu)
    return dx


def _launch(
    x: Tensor, g: Tensor | None, to: Tensor, factor: Tensor, eps: float, smooth: bool, silu: bool
) -> None:
    addresses = *sequence(x), *sequence(g), *sequence(to), factor.data_ptr()
    sizes = *x.shape, torch.get_num_threads()
    launch("fwlight_l2_norm", x.dtype, *sizes, *addresses, bits(eps), smooth, silu)


def _keep(
    ctx: Any, inputs: tuple[Tensor, float, bool, bool], output: tuple[Tensor, Tensor]
) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    if g is None:
        return None, None, None, None
    x, factor = ctx.saved_tensors
    eps, smooth, silu = ctx.options
    if not torch.is_grad_enabled():
        run = torch.ops.fwlight.native_l2_norm_backward if traced(g) else _backward
        return run(g, x, factor, eps, smooth, silu), None, None, None
    # The same in torch's own operators, for derivatives of it.
    y = plain_l2_norm(x, eps, smooth=smooth, silu=silu)
    return torch.autograd.grad(y, x, g, create_graph=True)[0], None, None, None


def _fake_forward(x: Any, eps: float, smooth: bool, silu: bool) -> Any:
    del eps, smooth, silu
    x = dense(x)
    return empty_like(x), x.new_empty(x.shape[:3])


def _fake_backward(g: Any, x: Any, factor: Any, eps: float, smooth: bool, silu: bool) -> Any:
    del g, factor, eps, smooth, silu
    return empty_like(dense(x))


_direct = direct("native_l2_norm", _forward, _keep, _gradient)
LIBRARY.impl("native_l2_norm", _forward, "CPU")
LIBRARY.impl("native_l2_norm_backward", _backward, "CPU")
torch.library.register_fake("fwlight::native_l2_norm", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_l2_norm_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_l2_norm", _gradient, setup_context=_keep, lib=LIBRARY
)
