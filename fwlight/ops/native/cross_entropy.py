"""Cross-entropy by row in compiled code, as a torch operator: no probability is ever stored."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import bits, launch, operator


def native_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the loss of every row of logits `[N, n]`; 0 of one whose target `[N]` is negative.

    Any number of derivatives.

    Raises:
        IndexError: A target is not below n.
    """
    return _run(logits, targets, smoothing)[0]


def _forward(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, size = logits.shape
    loss, kept = logits.new_empty(rows), logits.new_empty(rows, 2)
    given = logits.data_ptr(), targets.data_ptr(), kept.data_ptr(), loss.data_ptr()
    sizes = rows, size, torch.get_num_threads()
    if launch("fwlight_cross_entropy", logits.dtype, *sizes, *given, 0, 0, 0, bits(smoothing)):
        raise IndexError(f"a target is {int(targets.max())}, and there are {size} logits")
    return loss, kept


def _backward(g: Tensor, logits: Tensor, targets: Tensor, kept: Tensor, smoothing: float) -> Tensor:
    logits, targets = logits.contiguous(), targets.contiguous()
    dx = torch.empty_like(logits)
    given = logits.data_ptr(), targets.data_ptr(), kept.data_ptr(), 0
    sizes = *logits.shape, torch.get_num_threads()
    out = g.data_ptr(), g.stride(0), dx.data_ptr(), bits(smoothing)
    launch("fwlight_cross_entropy", logits.dtype, *sizes, *given, *out)
    return dx


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, ctx.smoothing = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    if g is None:
        return None, None, None
    logits, targets, kept = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return _run_backward(g, logits, targets, kept, ctx.smoothing), None, None
    # The same in torch's own operators, for derivatives of it.
    expected = torch.full_like(logits, ctx.smoothing / logits.shape[1])
    chosen = targets.clamp(min=0)[:, None]
    expected.scatter_add_(1, chosen, expected.new_full(chosen.shape, 1 - ctx.smoothing))
    g = torch.where(targets < 0, 0.0, g)[:, None]
    return g * (logits.softmax(-1) - expected), None, None


def _fake_forward(logits: Any, targets: Any, smoothing: float) -> Any:
    del targets, smoothing
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0], 2)


def _fake_backward(g: Any, logits: Any, targets: Any, kept: Any, smoothing: float) -> Any:
    del g, targets, kept, smoothing
    return logits.new_empty(logits.shape)


_run_backward = operator(
    "native_cross_entropy_backward(Tensor g, Tensor logits, Tensor targets, Tensor kept,"
    " float smoothing) -> Tensor",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_cross_entropy(Tensor logits, Tensor targets, float smoothing)"
    " -> (Tensor loss, Tensor kept)",
    _forward,
    _fake_forward,
    keep=_keep,
    gradient=_gradient,
)
