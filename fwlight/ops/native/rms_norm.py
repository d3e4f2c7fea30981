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
    rows = _rows(x)
    y, factor = empty_like(rows), x.new_empty(rows.shape[:3])
    _launch(rows, None, y, weight, factor, 0, eps)
    return y.view(x.shape), factor


def _backward(g: Tensor, x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(x)
    dx, dweight = empty_like(rows), torch.empty_like(weight)
    _launch(rows, _rows(g), dx, weight, factor, dweight.data_ptr(), 0.0)
    return dx.view(x.shape), dweight


def _rows(x: Any) -> Any:
    return dense(x if x.ndim == 4 else x.reshape(1, 1, -1, x.shape[-1]))


def _launch(
    x: Tensor,
    g: Tensor | None,
    to: Tensor,
    weight: Tensor,
    factor: Tensor,
    dweight: int,
    eps: float,
) -> None:
    addresses = *sequence(x), *sequence(g), *sequence(to), weight.data_ptr(), factor.data_ptr()
    sizes = *x.shape, torch.get_num_threads()
    if launch("fwlight_rms_norm", x.dtype, *sizes, *addresses, dweight, bits(eps)):
        raise MemoryError(f"fwlight_rms_norm: no memory for x {list(x.shape)}")


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
    rows = _rows(x)
    return empty_like(rows).view(x.shape), x.new_empty(rows.shape[:3])


def _fake_backward(g: Any, x: Any, weight: Any, factor: Any) -> Any:
    del g, factor
    return empty_like(_rows(x)).view(x.shape), torch.empty_like(weight)


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
