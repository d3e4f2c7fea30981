"""Rows over their root mean square in compiled code, as a torch operator."""

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

LIBRARY.define("native_rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor factor)")
LIBRARY.define(
    "native_rms_norm_backward(Tensor g, Tensor x, Tensor weight, Tensor factor)"
    " -> (Tensor dx, Tensor dweight)"
)


def native_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x `[..., D]` / sqrt(mean(x^2) + eps) times weight `[D]`, any number of derivatives."""
    run = torch.ops.fwlight.native_rms_norm if traced(x) else _direct
    if x.ndim == 4:
        return run(x, weight, eps)[0]
    return run(x.reshape(1, 1, -1, x.shape[-1]), weight, eps)[0].view(x.shape)


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = dense(x)
    y, factor = empty_like(x), x.new_empty(x.shape[:3])
    _launch(x, None, y, weight, factor, 0, eps)
    return y, factor


def _backward(g: Tensor, x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    g, x = dense(g), dense(x)
    dx, dweight = empty_like(x), torch.empty_like(weight)
    _launch(x, g, dx, weight, factor, dweight.data_ptr(), 0.0)
    return dx, dweight


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
        run = torch.ops.fwlight.native_rms_norm_backward if traced(g) else _backward
        return *run(g, x, weight, factor), None
    # The same in torch's own operators, for derivatives of it.
    y = F.rms_norm(x, weight.shape, weight, ctx.eps)
    given = [value for value in (x, weight) if value.requires_grad]
    found = iter(torch.autograd.grad(y, given, g, create_graph=True))
    return *(next(found) if value.requires_grad else None for value in (x, weight)), None


def _fake_forward(x: Any, weight: Any, eps: float) -> Any:
    del weight, eps
    x = dense(x)
    return empty_like(x), x.new_empty(x.shape[:3])


def _fake_backward(g: Any, x: Any, weight: Any, factor: Any) -> Any:
    del g, factor
    return empty_like(dense(x)), torch.empty_like(weight)


_direct = direct("native_rms_norm", _forward, _keep, _gradient)
LIBRARY.impl("native_rms_norm", _forward, "CPU")
LIBRARY.impl("native_rms_norm_backward", _backward, "CPU")
torch.library.register_fake("fwlight::native_rms_norm", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_rms_norm_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd(
    "fwlight::native_rms_norm", _gradient, setup_context=_keep, lib=LIBRARY
)
