"""Rows over their root mean square in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.ops.native.launch import bits, dense, empty_like, launch, operator, sequence


def native_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x `[..., D]` / sqrt(mean(x^2) + eps) times weight `[D]`, any number of derivatives."""
    return _run(x, weight, eps)[0]


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = _given(x)
    y, factor = _fake_forward(x, weight, eps)
    _launch(x, None, y, weight, factor, 0, eps)
    return y, factor


def _backward(g: Tensor, x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    x, g = _given(x), _given(g)
    dx, dweight = _fake_backward(g, x, weight, factor)
    _launch(x, g, dx, weight, factor, dweight.data_ptr(), 0.0)
    return dx, dweight


def _given(x: Any) -> Any:
    """Return x with strides that are told: those of `[B, H, T, D]`, or of a contiguous tensor."""
    return x if x.is_contiguous() else dense(x) if x.ndim == 4 else x.contiguous()


def _launch(
    x: Tensor,
    g: Tensor | None,
    to: Tensor,
    weight: Tensor,
    factor: Tensor,
    dweight: int,
    eps: float,
) -> None:
    place, shape = sequence, x.shape
    if x.is_contiguous() and to.is_contiguous() and (g is None or g.is_contiguous()):
        shape = 1, 1, factor.numel(), x.shape[-1]
        place = _in_one_row  # which is told faster
    addresses = *place(x), *place(g), *place(to), weight.data_ptr(), factor.data_ptr(), dweight
    if launch("fwlight_rms_norm", x.dtype, *shape, torch.get_num_threads(), *addresses, bits(eps)):
        raise MemoryError(f"fwlight_rms_norm: no memory for x {list(x.shape)}")


def _in_one_row(x: Tensor | None) -> tuple[int, ...]:
    """Return address and strides of a contiguous tensor's rows as of `[1, 1, T, D]`."""
    return (0, 0, 0, 0) if x is None else (x.data_ptr(), 0, 0, x.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if g is None:
        return None, None, None
    x, weight, factor = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return *_run_backward(g, x, weight, factor), None
    # The same in torch's own operators, for derivatives of it.
    y = F.rms_norm(x, weight.shape, weight, ctx.eps)
    given = [value for value in (x, weight) if value.requires_grad]
    found = iter(torch.autograd.grad(y, given, g, create_graph=True))
    return *(next(found) if value.requires_grad else None for value in (x, weight)), None


def _fake_forward(x: Any, weight: Any, eps: float) -> Any:
    del weight, eps
    return _like(x), x.new_empty(x.shape[:-1])


def _fake_backward(g: Any, x: Any, weight: Any, factor: Any) -> Any:
    del g, factor
    return _like(x), torch.empty_like(weight)


def _like(x: Any) -> Any:
    x = _given(x)
    return empty_like(x) if x.ndim == 4 else torch.empty_like(x)


_run_backward = operator(
    "native_rms_norm_backward(Tensor g, Tensor x, Tensor weight, Tensor factor)"
    " -> (Tensor dx, Tensor dweight)",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor factor)",
    _forward,
    _fake_forward,
    keep=_keep,
    gradient=_gradient,
)
