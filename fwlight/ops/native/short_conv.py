"""The causal depthwise convolution in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.ops.native.launch import dense, launch, operator


def native_short_conv(x: Tensor, weight: Tensor, tail: Tensor | None) -> Tensor:
    """Return the convolution of x `[B, T, C]` with weight `[C, W]`, any number of derivatives.

    Args:
        x: Inputs.
        weight: The last column is that of the input at the output's own place.
        tail: The W - 1 inputs before them `[B, W - 1, C]`; None is zeros.
    """
    return _run(x, weight, tail)


def plain_short_conv(x: Tensor, weight: Tensor, tail: Tensor | None) -> Tensor:
    """Return the same by torch's operators."""
    if tail is None:
        window = F.pad(x, (0, 0, weight.shape[1] - 1, 0))
    else:
        window = torch.cat([tail, x], dim=1)
    y = F.conv1d(window.transpose(1, 2), weight[:, None], groups=x.shape[2])
    return y.transpose(1, 2)


def _forward(x: Tensor, weight: Tensor, tail: Tensor | None) -> Tensor:
    y = x.new_empty(x.shape)
    _launch(x, weight, tail, y, 0, 0, 0)
    return y


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, tail: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    dtail = x.new_empty(0) if tail is None else tail.new_empty(tail.shape)
    addresses = dx.data_ptr(), 0 if tail is None else dtail.data_ptr(), dweight.data_ptr()
    _launch(x, weight, tail, dense(g), *addresses)
    return dx, dweight, dtail


def _launch(
    x: Tensor, weight: Tensor, tail: Tensor | None, y: Tensor, dx: int, dtail: int, dweight: int
) -> None:
    x, weight = dense(x), weight.contiguous()
    tail = None if tail is None else dense(tail)
    sizes = *x.shape, weight.shape[1], torch.get_num_threads()
    given = *_rows(x), *_rows(tail), weight.data_ptr(), *_rows(y)
    if launch("fwlight_short_conv", x.dtype, *sizes, *given, dx, dtail, dweight):
        raise MemoryError(f"fwlight_short_conv: no memory for x {list(x.shape)}")


def _rows(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, tail = ctx.saved_tensors
    if not torch.is_grad_enabled():
        dx, dweight, dtail = _run_backward(g, x, weight, tail)
        return dx, dweight, None if tail is None else dtail
    # The same in torch's own operators, for derivatives of it.
    given = [value for value in (x, weight, tail) if value is not None and value.requires_grad]
    y = plain_short_conv(x, weight, tail)
    found = iter(torch.autograd.grad(y, given, g, create_graph=True))
    return tuple(
        next(found) if value is not None and value.requires_grad else None
        for value in (x, weight, tail)
    )


def _fake_forward(x: Any, weight: Any, tail: Any) -> Any:
    del weight, tail
    return x.new_empty(x.shape)


def _fake_backward(g: Any, x: Any, weight: Any, tail: Any) -> Any:
    del g
    dtail = x.new_empty(0) if tail is None else tail.new_empty(tail.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dtail


_run_backward = operator(
    "native_short_conv_backward(Tensor g, Tensor x, Tensor weight, Tensor? tail)"
    " -> (Tensor dx, Tensor dweight, Tensor dtail)",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_short_conv(Tensor x, Tensor weight, Tensor? tail) -> Tensor",
    _forward,
    _fake_forward,
    keep=_keep,
    gradient=_gradient,
)
