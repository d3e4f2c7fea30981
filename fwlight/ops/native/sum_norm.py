"""Features divided by their sum, in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import bits, dense, empty_like, launch, operator, sequence


def native_sum_norm(x: Tensor, eps: float) -> Tensor:
    """Return x `[B, H, T, D]` over the sum of its last dimension and eps; differentiable twice.

    Where that is 0, x stays as it is.
    """
    return _run(x, eps)[0]


def _forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = dense(x)
    y, inverse = empty_like(x), x.new_empty(x.shape[:3])
    _launch(x, None, y, inverse, eps)
    return y, inverse


def _backward(g: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    g, y = dense(g), dense(y)
    dx = empty_like(y)
    _launch(g, y, dx, inverse, 0.0)
    return dx


def _launch(source: Tensor, y: Tensor | None, to: Tensor, inverse: Tensor, eps: float) -> None:
    addresses = *sequence(source), *sequence(y), *sequence(to), inverse.data_ptr()
    sizes = *to.shape, torch.get_num_threads()
    launch("fwlight_sum_norm", to.dtype, *sizes, *addresses, bits(eps))


def _keep_results(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    del inputs
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, g: Tensor | None, g_inverse: Tensor | None) -> tuple[Tensor | None, None]:
    y, inverse = ctx.saved_tensors
    if g is not None and g_inverse is None and not torch.is_grad_enabled():
        return _run_backward(g, y, inverse), None
    # The same in torch's own operators; of 1 / s only a second derivative makes use.
    inverse = inverse[..., None]
    dx = torch.zeros_like(y)
    if g is not None:
        dx = torch.where(inverse == 0, g, (g - (g * y).sum(-1, keepdim=True)) * inverse)
    if g_inverse is not None:
        dx = dx - g_inverse[..., None] * inverse.square()
    return dx, None


def _fake_forward(x: Any, eps: float) -> Any:
    del eps
    x = dense(x)
    return empty_like(x), x.new_empty(x.shape[:3])


def _fake_backward(g: Any, y: Any, inverse: Any) -> Any:
    del g, inverse
    return empty_like(dense(y))


_run_backward = operator(
    "native_sum_norm_backward(Tensor g, Tensor y, Tensor inverse) -> Tensor",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_sum_norm(Tensor x, float eps) -> (Tensor y, Tensor inverse)",
    _forward,
    _fake_forward,
    keep=_keep_results,
    gradient=_gradient,
)
