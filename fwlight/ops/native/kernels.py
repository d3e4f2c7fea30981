"""The compiled kernels as torch operators: shapes in, shapes out, and how to differentiate."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library and Function.apply carry no types)

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from fwlight.ops.chunks import refuse_second_derivative
from fwlight.ops.native.launch import CHUNK, LIBRARY, dense, empty_like, launch, sequence

# As in simd.h and arguments.h.
PAD = 16
RULES = {"sum": 0, "delta": 1, "fwm": 2}

STATES_AT_HAND = 1 << 18
"""Bytes of recomputed states that the backward pass may keep in the processor's second cache."""

_overwriting = ContextVar("overwriting", default=False)

# The one way for an autograd kernel to call what lies under it; used in torch's documentation.
_below_autograd = torch._C._AutoDispatchBelowAutograd  # pyright: ignore[reportPrivateUsage]

LIBRARY.define(
    "native_rule(Tensor? q, Tensor k, Tensor v, Tensor? beta, Tensor? state, str rule, bool keep)"
    " -> (Tensor o, Tensor state, Tensor kept)"
)
LIBRARY.define(
    "native_rule_backward(Tensor? q, Tensor k, Tensor v, Tensor? beta, Tensor? d_o,"
    " Tensor? d_state, Tensor kept, str rule, bool started)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbeta, Tensor d_state)"
)


def _state_shape(k: Tensor, v: Tensor) -> tuple[Any, ...]:  # symbols, where torch traces
    return *k.shape[:2], k.shape[3], v.shape[3]


def _chunks_per_state(k: Tensor, v: Tensor) -> int:
    """Return for how many chunks one state is kept; the backward pass computes the others again.

    The more, the less memory is written and read; but those of one group should fit a cache.
    """
    # int: also where the compiler of torch traces with symbolic sizes.
    size = int(k.shape[3]) * int(v.shape[3]) * k.dtype.itemsize
    return min(max(STATES_AT_HAND // size, 4), 16)


def _forward_results(
    q: Tensor | None, k: Tensor, v: Tensor, rule: str, keep: bool
) -> tuple[Tensor, ...]:
    """Return memory for o, S_T and what is kept for the backward pass; empty if not wanted."""
    o = v.new_empty(0) if q is None else empty_like(v)
    last = v.new_empty(_state_shape(k, v))
    if not keep:
        return o, last, v.new_empty(0)
    b, h, t, d_key = k.shape
    every = _chunks_per_state(k, v)
    chunks = (t + CHUNK - 1) // CHUNK
    groups = (chunks + every - 1) // every
    keys, values = ((d + PAD - 1) // PAD * PAD for d in (d_key, v.shape[3]))
    # Of every token, as in arguments.h: what was missing, under the FWM rule also what it divided
    # the state by, and products with the others of its chunk.
    per_token = {"sum": CHUNK, "delta": values + 2 * CHUNK, "fwm": values + 1}[rule]
    return o, last, v.new_empty((b, h, groups * keys * values + chunks * CHUNK * per_token))


def _backward_results(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, started: bool
) -> tuple[Tensor, ...]:
    wanted = [v.new_empty(0) if x is None else empty_like(x) for x in (q, k, v, beta)]
    return *wanted, v.new_empty(_state_shape(k, v) if started else 0)


def _call(name: str, rule: str, k: Tensor, v: Tensor, every: int, *values: int) -> None:
    sizes = *k.shape, v.shape[3], torch.get_num_threads(), every
    if launch(name, k.dtype, RULES[rule], *sizes, *values):
        raise MemoryError(f"{name}: no memory for q, k {list(k.shape)} and v {list(v.shape)}")


def _forward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    rule: str,
    keep: bool,
) -> tuple[Tensor, ...]:
    q = None if q is None else dense(q)
    k, v = dense(k), dense(v)
    results = _forward_results(q, k, v, rule, keep)
    o, last, kept = results
    o, kept = None if q is None else o, kept if keep else None
    _launch_forward(q, k, v, beta, state, rule, o, last, kept)
    return results


def _launch_forward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    rule: str,
    o: Tensor | None,
    last: Tensor,
    kept: Tensor | None,
) -> None:
    state = None if state is None else state.contiguous()
    _call(
        "fwlight_forward",
        rule,
        k,
        v,
        1 if kept is None else _chunks_per_state(k, v),
        *sequence(q),
        *sequence(k),
        *sequence(v),
        *sequence(beta),
        *sequence(o),
        0 if state is None else state.data_ptr(),
        last.data_ptr(),
        0 if kept is None else kept.data_ptr(),
    )


def _backward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    d_o: Tensor | None,
    d_state: Tensor | None,
    kept: Tensor,
    rule: str,
    started: bool,
) -> tuple[Tensor, ...]:
    if q is None or d_o is None:
        q = d_o = None
    else:
        q, d_o = dense(q), dense(d_o)
    k, v = dense(k), dense(v)
    d_state = None if d_state is None else d_state.contiguous()
    dq, dk, dv, dbeta, d_initial = results = _backward_results(q, k, v, beta, started)
    _call(
        "fwlight_backward",
        rule,
        k,
        v,
        _chunks_per_state(k, v),
        *sequence(q),
        *sequence(k),
        *sequence(v),
        *sequence(beta),
        *sequence(d_o),
        *sequence(None if q is None else dq),
        *sequence(dk),
        *sequence(dv),
        *sequence(None if beta is None else dbeta),
        0 if d_state is None else d_state.data_ptr(),
        d_initial.data_ptr(),  # zero where there is none
        kept.data_ptr(),
    )
    return results


def _traced(x: Tensor) -> bool:
    """Return whether the operators must be seen; dispatching one written in Python takes time."""
    return type(x) is not Tensor or torch.compiler.is_compiling()


class _Rule(Function):
    @staticmethod
    def forward(
        ctx: Any, rule: str, q: Any, k: Tensor, v: Tensor, beta: Any, S: Any
    ) -> tuple[Tensor, Tensor]:
        if _traced(k):
            with _below_autograd():
                o, last, kept = _OP(q, k, v, beta, S, rule, True)
        else:
            o, last, kept = _forward(q, k, v, beta, S, rule, True)
        ctx.rule, ctx.started = rule, S is not None
        ctx.save_for_backward(q, k, v, beta, kept)
        ctx.set_materialize_grads(False)
        return o, last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, kept = ctx.saved_tensors
        d_o, d_last = grads
        if q is None or d_o is None:
            q = d_o = None
        if d_last is None and ctx.rule == "fwm":
            d_last = v.new_zeros(_state_shape(k, v))
        run: Any = _BACKWARD_OP if _traced(k) else _backward
        dq, dk, dv, dbeta, d_initial = run(q, k, v, beta, d_o, d_last, kept, ctx.rule, ctx.started)
        dq = None if q is None else dq
        dbeta = None if beta is None else dbeta
        return None, dq, dk, dv, dbeta, d_initial if ctx.started else None


@contextmanager
def overwriting_states() -> Generator[None]:
    """Let the compiled kernels write the next state over `initial_state`, where it is contiguous.

    For decoding, whose states nobody else holds: new memory for a state of some megabytes costs
    more than the step. Whoever else holds `initial_state` sees it change, and autograd does not
    notice; what requires a gradient, or is computed with one, is left alone.
    """
    token = _overwriting.set(True)
    try:
        yield
    finally:
        _overwriting.reset(token)


def _requires_grad(*inputs: Tensor | None) -> bool:
    for x in inputs:  # noqa: SIM110 - any() with a generator takes twice as long
        if x is not None and x.requires_grad:
            return True
    return False


def _autograd(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, rule, keep = arguments
    if not (torch.is_grad_enabled() and _requires_grad(*inputs)):
        with _below_autograd():
            return _OP(*inputs, rule, keep)
    o, last = _Rule.apply(rule, *inputs)
    return o, last, last.new_empty(0)


def _fake_forward(q: Any, k: Any, v: Any, beta: Any, state: Any, rule: str, keep: bool) -> Any:
    return _forward_results(q, dense(k), dense(v), rule, keep)


def _fake_backward(q: Any, k: Any, v: Any, beta: Any, d_o: Any, d_state: Any, *others: Any) -> Any:
    q = None if q is None or d_o is None else dense(q)
    return _backward_results(q, dense(k), dense(v), beta, others[-1])


LIBRARY.impl("native_rule", _forward, "CPU")
LIBRARY.impl("native_rule_backward", _backward, "CPU")
LIBRARY.impl("native_rule", _autograd, "Autograd")
torch.library.register_fake("fwlight::native_rule", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_rule_backward", _fake_backward, lib=LIBRARY)
_OP = torch.ops.fwlight.native_rule.default
_BACKWARD_OP = torch.ops.fwlight.native_rule_backward.default


def _run(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, S: Tensor | None, rule: str
) -> tuple[Tensor | None, Tensor]:
    if _traced(k):
        o, last, _ = _OP(q, k, v, beta, S, rule, False)
        return None if q is None else o, last
    if torch.is_grad_enabled() and _requires_grad(q, k, v, beta, S):
        o, last = _Rule.apply(rule, q, k, v, beta, S)
        return None if q is None else o, last
    q = None if q is None else dense(q)
    k, v = dense(k), dense(v)
    o = None if q is None else empty_like(v)
    if S is not None and _overwriting.get() and S.is_contiguous() and not S.requires_grad:
        last = S
    else:
        last = v.new_empty(_state_shape(k, v))
    _launch_forward(q, k, v, beta, S, rule, o, last, None)
    return o, last


def native_delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule in compiled code, in chunks that stay in the processor's cache."""
    return _run(q, k, v, beta, S, "delta")


def native_sum_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, S: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Run the sum rule in compiled code, in chunks that stay in the processor's cache."""
    return _run(q, k, v, beta, S, "sum")


def native_fwm_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Run the FWM rule in compiled code, in chunks that stay in the processor's cache."""
    return _run(q, k, v, beta, v.new_zeros(_state_shape(k, v)) if S is None else S, "fwm")
