"""The feature map DPFP in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import LIBRARY, dense, empty_like, launch, sequence

LIBRARY.define("native_dpfp(Tensor x, int nu) -> Tensor")
LIBRARY.define("native_dpfp_backward(Tensor g, Tensor x, int nu) -> Tensor")


def native_dpfp(x: Tensor, nu: int) -> Tensor:
    """Return the features `[..., 2 d nu]` of head vectors `[..., d]`; differentiable twice."""
    if x.ndim == 4:
        return torch.ops.fwlight.native_dpfp(x, nu)
    features = torch.ops.fwlight.native_dpfp(x.reshape(1, 1, -1, x.shape[-1]), nu)
    return features.view(*x.shape[:-1], -1)


def _forward(x: Tensor, nu: int) -> Tensor:
    x = dense(x)
    features = empty_like(x, 2 * x.shape[3] * nu)
    _launch(nu, x, features, None)
    return features


def _backward(g: Tensor, x: Tensor, nu: int) -> Tensor:
    g, x = dense(g), dense(x)
    dx = empty_like(x)
    _launch(nu, x, g, dx)
    return dx


def _launch(nu: int, x: Tensor, features: Tensor, dx: Tensor | None) -> None:
    addresses = *sequence(x), *sequence(features), *sequence(dx)
    if launch("fwlight_dpfp", x.dtype, nu, *x.shape, torch.get_num_threads(), *addresses):
        raise MemoryError(f"fwlight_dpfp: no memory for x {list(x.shape)}")


def _keep_arguments(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    del output
    x, ctx.nu = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return torch.ops.fwlight.native_dpfp_backward(g, x, ctx.nu), None
    # The same in torch's own operators, where a second derivative may be wanted.
    r = torch.cat([x.relu(), (-x).relu()], dim=-1)
    dr = torch.zeros_like(r)
    for j, g_j in enumerate(g.chunk(ctx.nu, dim=-1), start=1):
        dr = dr + g_j * r.roll(j, dims=-1) + (g_j * r).roll(-j, dims=-1)
    plus, minus = dr.chunk(2, dim=-1)
    return plus * (x > 0) - minus * (x < 0), None


def _fake_forward(x: Any, nu: int) -> Any:
    return empty_like(dense(x), 2 * x.shape[3] * nu)


def _fake_backward(g: Any, x: Any, nu: int) -> Any:
    del g, nu
    return empty_like(dense(x))


LIBRARY.impl("native_dpfp", _forward, "CPU")
LIBRARY.impl("native_dpfp_backward", _backward, "CPU")
torch.library.register_fake("fwlight::native_dpfp", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_dpfp_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_dpfp", _gradient, setup_context=_keep_arguments, lib=LIBRARY
)
