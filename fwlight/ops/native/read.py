"""One read of a memory that is never formed, in compiled code, as a torch operator."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.chunks import refuse_second_derivative
from fwlight.ops.native.dpfp import map_arguments
from fwlight.ops.native.kernels import RULES
from fwlight.ops.native.launch import CHUNK, dense, empty_like, launch, operator, sequence


def native_delta_read(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """Return the weights of all values, in one pass over the keys from the last to the first."""
    return _run(q, k, beta, 0, None)[0]


def native_dpfp_read(
    q: Tensor, x: Tensor, beta: Tensor | None, nu: int, eps: float | None
) -> Tensor:
    """Return the weights with which a query reads values written under the DPFP features of x.

    Features are made where they are used, and again in the backward pass; differentiable once.

    Args:
        q: The query, features already `[B, H, 2 d nu]`.
        x: Keys before the map `[B, H, T, d]`.
        beta: Write strengths of the delta rule `[B, H, T]`; None is the sum rule.
        nu: Number of blocks.
        eps: Divide the features by their sum and this; None does not.
    """
    return _run(q, x, beta, nu, eps)[0]


def _weights(k: Tensor, beta: Tensor | None) -> Tensor:
    return k.new_empty(k.shape[:3]) if beta is None else empty_like(beta)


def _kept(q: Tensor, k: Tensor, beta: Tensor | None) -> Tensor:
    """Return memory for the delta rule's queries at chunk ends."""
    b, h, t, _ = k.shape
    return k.new_empty(0 if beta is None else (b, h, (t + CHUNK - 1) // CHUNK, q.shape[2]))


def _forward(
    q: Tensor, k: Tensor, beta: Tensor | None, nu: int, eps: float | None
) -> tuple[Tensor, Tensor]:
    k = dense(k)
    a, kept = _weights(k, beta), _kept(q, k, beta)
    _launch(nu, eps, (k, beta, a, None, None, None), q.contiguous(), None, kept)
    return a, kept


def _backward(
    q: Tensor,
    k: Tensor,
    beta: Tensor | None,
    a: Tensor,
    kept: Tensor,
    da: Tensor,
    nu: int,
    eps: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k = q.contiguous(), dense(k)
    dq, dk, dbeta = _gradients_of(q, k, beta)
    _launch(nu, eps, (k, beta, a, da, dk, None if beta is None else dbeta), q, dq, kept)
    return dq, dk, dbeta


def _gradients_of(q: Tensor, k: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dbeta = k.new_empty(0) if beta is None else empty_like(beta)
    return q.new_empty(q.shape), empty_like(k), dbeta


def _launch(
    nu: int,
    eps: float | None,
    sequences: tuple[Tensor | None, ...],
    q: Tensor,
    dq: Tensor | None,
    kept: Tensor,
) -> None:
    k, beta = sequences[:2]
    assert k is not None
    addresses = [number for x in sequences for number in sequence(x)]
    addresses += [q.data_ptr(), 0 if dq is None else dq.data_ptr(), kept.data_ptr()]
    rule = RULES["sum" if beta is None else "delta"]
    sizes = *map_arguments(nu, eps, k.shape[3]), *k.shape[:3], torch.get_num_threads()
    if launch("fwlight_read", k.dtype, rule, *sizes, *addresses):
        raise MemoryError(f"fwlight_read: no memory for k {list(k.shape)}")


def _keep_results(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, beta, ctx.nu, ctx.eps = inputs
    ctx.save_for_backward(q, k, beta, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, da: Tensor | None, d_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    del d_kept  # nobody reads them
    if da is None:
        return (None,) * 5
    refuse_second_derivative()
    saved = ctx.saved_tensors  # q, k, beta, a and kept
    dq, dk, dbeta = _run_backward(*saved, da, ctx.nu, ctx.eps)
    return dq, dk, None if saved[2] is None else dbeta, None, None


def _fake_forward(q: Any, k: Any, beta: Any, nu: int, eps: float | None) -> Any:
    del nu, eps
    k = dense(k)
    return _weights(k, beta), _kept(q, k, beta)


def _fake_backward(q: Any, k: Any, beta: Any, *others: Any) -> Any:
    del others
    return _gradients_of(q.contiguous(), dense(k), beta)


_run_backward = operator(
    "native_read_backward(Tensor q, Tensor k, Tensor? beta, Tensor a, Tensor kept, Tensor da,"
    " int nu, float? eps) -> (Tensor dq, Tensor dk, Tensor dbeta)",
    _backward,
    _fake_backward,
)
_run = operator(
    "native_read(Tensor q, Tensor k, Tensor? beta, int nu, float? eps) -> (Tensor a, Tensor kept)",
    _forward,
    _fake_forward,
    keep=_keep_results,
    gradient=_gradients,
)
