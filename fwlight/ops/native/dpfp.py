"""The feature map DPFP in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import bits, dense, empty_like, launch, operator, sequence


def native_dpfp(x: Tensor, nu: int, eps: float | None = None) -> Tensor:
    """Return the features `[..., 2 d nu]` of head vectors `[..., d]`; differentiable twice.

    Args:
        x: Head vectors.
        nu: Number of blocks.
        eps: Divide the features by their sum and this; where that is 0, and with None, they stay
            as they are.
    """
    if x.ndim == 4:
        return _run(x, nu, eps)
    features = _run(x.reshape(1, 1, -1, x.shape[-1]), nu, eps)
    return features.view(*x.shape[:-1], -1)


def map_arguments(nu: int, eps: float | None, d: int) -> tuple[int, ...]:
    """Return what dpfp.h wants to know of the map of vectors of size `d`."""
    return nu, eps is not None, bits(eps or 0.0), d


def _forward(x: Tensor, nu: int, eps: float | None) -> Tensor:
    x = dense(x)
    features = empty_like(x, 2 * x.shape[3] * nu)
    _launch(nu, eps, x, features, None)
    return features


def _backward(g: Tensor, x: Tensor, nu: int, eps: float | None) -> Tensor:
    g, x = dense(g), dense(x)
    dx = empty_like(x)
    _launch(nu, eps, x, g, dx)
    return dx


def _launch(nu: int, eps: float | None, x: Tensor, features: Tensor, dx: Tensor | None) -> None:
    addresses = *sequence(x), *sequence(features), *sequence(dx)
    sizes = *map_arguments(nu, eps, x.shape[3]), *x.shape[:3], torch.get_num_threads()
    if launch("fwlight_dpfp", x.dtype, *sizes, *addresses):
        raise MemoryError(f"fwlight_dpfp: no memory for x {list(x.shape)}")


def _keep_arguments(ctx: Any, inputs: tuple[Tensor, int, float | None], output: Tensor) -> None:
    del output
    x, ctx.nu, ctx.eps = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return _run_backward(g, x, ctx.nu, ctx.eps), None, None
    # The same in torch's own operators, where a second derivative may be wanted.
    r = torch.cat([x.relu(), (-x).relu()], dim=-1)
    if ctx.eps is not None:
        y = torch.cat([r * r.roll(j, dims=-1) for j in range(1, ctx.nu + 1)], dim=-1)
        total = y.sum(-1, keepdim=True) + ctx.eps
        divisor = total.masked_fill(total == 0, 1.0)
        c = (g * y).sum(-1, keepdim=True) / divisor
        g = (g - c.masked_fill(total == 0, 0.0)) / divisor
    dr = torch.zeros_like(r)
    for j, g_j in enumerate(g.chunk(ctx.nu, dim=-1), start=1):
        dr = dr + g_j * r.roll(j, dims=-1) + (g_j * r).roll(-j, dims=-1)
    plus, minus = dr.chunk(2, dim=-1)
    return plus * (x > 0) - minus * (x < 0), None, None


def _fake_forward(x: Any, nu: int, eps: float | None) -> Any:
    del eps
    return empty_like(dense(x), 2 * x.shape[3] * nu)


def _fake_backward(g: Any, x: Any, nu: int, eps: float | None) -> Any:
    del g, nu, eps
    return empty_like(dense(x))


_run_backward = operator(
    "native_dpfp_backward(Tensor g, Tensor x, int nu, float? eps) -> Tensor",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_dpfp(Tensor x, int nu, float? eps) -> Tensor",
    _forward,
    _fake_forward,
    keep=_keep_arguments,
    gradient=_gradient,
)
