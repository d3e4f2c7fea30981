"""Recurrent cores in compiled code, over all tokens in one call.

Heads run in parallel. Of every 16th token the state is kept, which is memory of the order of the
inputs, and the backward pass computes those between again. What they compute stands in
`fwlight.ops.recurrent_scans`, whose functions call these.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportConstantRedefinition=false, reportIncompatibleMethodOverride=false
# (Function.apply carries no types; letters of matrices, as in the papers)

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from fwlight.ops.native.door import absence, transforms_active
from fwlight.ops.native.launch import bits, launch

Call = TypeVar("Call", bound=Callable[..., Any])
KEPT = 16  # as in scans.cpp
_PAD = 16
_ADDRESSES = 24
_RECURRENCE, _RECURRENT_DELTA, _SELF_REFERENCE = range(3)


def _not_traced(function: Call) -> Call:
    """Keep torch.compile out, without the loss of types."""
    return cast(Call, torch.compiler.disable(function))


def scan_obstacle(x: Tensor) -> str | None:
    """Return why a compiled scan cannot run on such numbers, or None if it can."""
    if not x.is_cpu:
        return f"the tensors are on {x.device.type}, not cpu"
    if transforms_active():
        return "a transform of torch.func is at work"
    if 0 in x.shape:
        return "there is nothing to scan"
    return absence(x.dtype, "scans")


@_not_traced
def native_delta_recurrence(
    z: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    R: Tensor,
    h: Tensor,
    c: Tensor | None,
    *,
    version: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Run a Delta RNN, or with c a Delta LSTM; return h_1 ... h_T and the last R, h and c."""
    return _Recurrence.apply(z, k, v, beta, R, h, c, version, eps)


@_not_traced
def native_recurrent_delta(
    q: Tensor, k: Tensor, v: Tensor, b: Tensor, S: Tensor, y: Tensor, *slow: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a Recurrent Delta Net; return y_1 ... y_T and the last S and y."""
    return _RecurrentDelta.apply(q, k, v, b, S, y, *slow)


@_not_traced
def native_self_reference(x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Run self-referential weights, all matrices side by side; return y_1 ... y_T and the last."""
    return _SelfReference.apply(x, W)


def _padded(n: int) -> int:
    return -(-n // _PAD) * _PAD


def _launch(
    kind: int,
    shape: Sequence[int],
    tensors: Sequence[Tensor | None],
    *,
    backward: bool,
    how: tuple[int, int, float] = (1, 0, 0.0),
) -> None:
    """Call the compiled function; `how` are gates, version and eps of the delta recurrence."""
    gates, version, eps = how
    addresses = [0 if x is None else x.data_ptr() for x in tensors]
    addresses += [0] * (_ADDRESSES - len(addresses))
    dtype = next(x.dtype for x in tensors if x is not None)
    numbers = kind, int(backward), *shape, gates, version, torch.get_num_threads(), bits(eps)
    if launch("fwlight_scan", dtype, *numbers, *addresses):
        raise MemoryError(f"scan: no memory for {list(shape)}")


def _kept(x: Tensor, heads: int, tokens: int, state: int) -> Tensor:
    return x.new_empty(heads * -(-tokens // KEPT) * state)


def _dense(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


class _Recurrence(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        R: Tensor,
        h: Tensor,
        c: Tensor | None,
        version: int,
        eps: float,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        given = _dense(z, k, v, beta, R, h, c)
        b, heads, d = h.shape
        tokens, gates = z.shape[2], z.shape[1] // heads
        kept = None
        if any(ctx.needs_input_grad):
            wide = _padded(d)
            kept = _kept(z, b * heads, tokens, (gates * d + 2) * wide)
        o, last = h.new_empty(b, heads, tokens, d), [torch.empty_like(x) for x in given[4:6]]
        cell = None if c is None else torch.empty_like(given[6])
        ctx.how = gates, version, eps
        shape = b, heads, tokens, d
        _launch(_RECURRENCE, shape, [kept, *given, o, *last, cell], backward=False, how=ctx.how)
        ctx.save_for_backward(*given, kept)
        return o, *last, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *given, kept = ctx.saved_tensors
        d_o, *d_last = _dense(*grads)
        found = [None if x is None else torch.empty_like(x) for x in given]
        b, heads, d = given[5].shape
        shape = b, heads, given[0].shape[2], d
        tensors = [kept, *given, d_o, *d_last, *found]
        _launch(_RECURRENCE, shape, tensors, backward=True, how=ctx.how)
        return *found, None, None


class _RecurrentDelta(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        given = _dense(*inputs)
        q, S, y = given[0], given[4], given[5]
        b, heads, tokens, d = q.shape
        kept = None
        if any(ctx.needs_input_grad):
            kept = _kept(q, b * heads, tokens, (d + 1) * _padded(d))
        results = [torch.empty_like(x) for x in (q, S, y)]
        _launch(_RECURRENT_DELTA, q.shape, [kept, *given, *results], backward=False)
        ctx.save_for_backward(*given, kept)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *given, kept = ctx.saved_tensors
        found = [torch.empty_like(x) for x in given[:6]]
        # Every sequence has its own gradient of what all share.
        b = len(given[0])
        shared = [x.new_empty(b, *x.shape) for x in given[6:]]
        tensors = [kept, *given, *_dense(*grads), *found, *shared]
        _launch(_RECURRENT_DELTA, given[0].shape, tensors, backward=True)
        return *found, *(x.sum(0) for x in shared)


class _SelfReference(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x, W = _dense(x, W)
        b, heads, tokens, d = x.shape
        kept = None
        if any(ctx.needs_input_grad):
            kept = _kept(x, b * heads, tokens, d * _padded(W.shape[3]))
        y, last = torch.empty_like(x), torch.empty_like(W)
        _launch(_SELF_REFERENCE, x.shape, [kept, x, W, y, last], backward=False)
        ctx.save_for_backward(x, W, kept)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
        x, W, kept = ctx.saved_tensors
        found = torch.empty_like(x), torch.empty_like(W)
        tensors = [kept, x, W, *_dense(*grads), *found]
        _launch(_SELF_REFERENCE, x.shape, tensors, backward=True)
        return found
