"""Vectors at unit length, perhaps after SiLU, in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.ops.native.launch import bits, dense, empty_like, launch, operator, sequence

LEAST = 1e-12


def native_l2_norm(x: Tensor, eps: float, *, smooth: bool = False, silu: bool = False) -> Tensor:
    """Return s / max(|s|, eps) of vectors x `[B, H, T, D]`, any number of derivatives.

    Args:
        x: Vectors.
        eps: At least `LEAST`, which is taken for anything less.
        smooth: Divide by sqrt(|s|^2 + eps) instead.
        silu: s = silu(x) instead of x.
    """
    return _run(x, max(eps, LEAST), smooth, silu)[0]


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
        return _run_backward(g, x, factor, eps, smooth, silu), None, None, None
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


_run_backward = operator(
    "native_l2_norm_backward(Tensor g, Tensor x, Tensor factor, float eps, bool smooth, bool silu)"
    " -> Tensor",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_l2_norm(Tensor x, float eps, bool smooth, bool silu) -> (Tensor y, Tensor factor)",
    _forward,
    _fake_forward,
    keep=_keep,
    gradient=_gradient,
)
