"""ReLU, GELU and SwiGLU in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.ops.native.launch import launch, operator

ACTIVATIONS = ("relu", "gelu", "swiglu")


def native_activation(x: Tensor, kind: str, bias: Tensor | None = None) -> Tensor:
    """Return what `plain_activation` does, any number of derivatives."""
    return _run(x, bias, ACTIVATIONS.index(kind))


def plain_activation(x: Tensor, kind: str, bias: Tensor | None = None) -> Tensor:
    """Return max(0, a), a Phi(a) or, of halves a and b, silu(a) b, of a = x + bias.

    Args:
        x: `[..., N]`, any of its rows a vector.
        kind: One of `ACTIVATIONS`.
        bias: `[N]`, None for nothing; SwiGLU has none.
    """
    a = x if bias is None else x + bias
    if kind == "swiglu":
        gate, value = a.chunk(2, dim=-1)
        return F.silu(gate) * value
    return F.relu(a) if kind == "relu" else F.gelu(a)


def _shape(x: Any, kind: int) -> Any:
    return *x.shape[:-1], x.shape[-1] // 2 if ACTIVATIONS[kind] == "swiglu" else x.shape[-1]


def _forward(x: Tensor, bias: Tensor | None, kind: int) -> Tensor:
    y = x.new_empty(_shape(x, kind))
    _launch(x, None, y, bias, None, kind)
    return y


def _backward(g: Tensor, x: Tensor, bias: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    dx, dbias = _fake_backward(g, x, bias, kind)
    _launch(x, g, dx, bias, dbias, kind)
    return dx, dbias


def _launch(
    x: Tensor, g: Tensor | None, to: Tensor, bias: Tensor | None, dbias: Tensor | None, kind: int
) -> None:
    *rows, size = _shape(x, kind)
    given = [None if y is None else y.contiguous() for y in (x, g)]
    addresses = [0 if y is None else y.data_ptr() for y in (*given, to, bias, dbias)]
    sizes = torch.Size(rows).numel(), size, torch.get_num_threads(), kind
    if launch("fwlight_activation", x.dtype, *sizes, *addresses):
        raise MemoryError(f"fwlight_activation: no memory for x {list(x.shape)}")


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
    del output
    x, bias, ctx.kind = inputs
    ctx.save_for_backward(x, bias)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    if not torch.is_grad_enabled():
        dx, dbias = _run_backward(g, x, bias, ctx.kind)
        return dx, None if bias is None else dbias, None
    # The same in torch's own operators, for derivatives of it.
    y = plain_activation(x, cast(str, ACTIVATIONS[ctx.kind]), bias)
    given = [value for value in (x, bias) if value is not None and value.requires_grad]
    found = iter(torch.autograd.grad(y, given, g, create_graph=True))
    wanted = (value is not None and value.requires_grad for value in (x, bias))
    return *(next(found) if needed else None for needed in wanted), None


def _fake_forward(x: Any, bias: Any, kind: int) -> Any:
    del bias
    return x.new_empty(_shape(x, kind))


def _fake_backward(g: Any, x: Any, bias: Any, kind: int) -> Any:
    del g, kind
    return x.new_empty(x.shape), x.new_empty(0) if bias is None else bias.new_empty(bias.shape)


_run_backward = operator(
    "native_activation_backward(Tensor g, Tensor x, Tensor? bias, int kind)"
    " -> (Tensor dx, Tensor dbias)",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_activation(Tensor x, Tensor? bias, int kind) -> Tensor",
    _forward,
    _fake_forward,
    keep=_keep,
    gradient=_gradient,
)
