"""The compiled kernels as torch operators: shapes in, shapes out, and how to differentiate."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library and Function.apply carry no types)

import functools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import Function

from fwlight.ops.chunks import apply, refuse_second_derivative
from fwlight.ops.native.build import REALS
from fwlight.ops.native.launch import (
    CHUNK,
    LIBRARY,
    dense,
    empty_like,
    launch,
    sequence,
    traced,
)

# As in simd.h and arguments.h.
PAD = 16
RULES = {"sum": 0, "delta": 1, "fwm": 2, "fwm_projected": 3}

STATES_AT_HAND = 1 << 18
"""Bytes of recomputed states that the backward pass may keep in the processor's second cache."""

_CONTIGUOUS = torch.contiguous_format
_ONE = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in REALS}
_NO_GATES: tuple[int, ...] = ()
_NOTHING = 0, 0, 0, 0, 0
"""Address and strides of no tensor. Those of the others are written out: a function that returned
them would take as long again, up to nine times a call."""

LAYOUT = 3
"""Version of the layout of what is kept for the backward pass, to be counted up with every change.
An argument of the operator, so that programs that torch compiled and cached are not used again."""

_overwriting = ContextVar("overwriting", default=False)

# The one way for an autograd kernel to call what lies under it; used in torch's documentation.
_below_autograd = torch._C._AutoDispatchBelowAutograd  # pyright: ignore[reportPrivateUsage]

LIBRARY.define(
    "native_rule(Tensor? q, Tensor k, Tensor v, Tensor? beta, Tensor? state, str rule, int keep,"
    " Tensor? decay=None, Tensor? erase_key=None) -> (Tensor o, Tensor state, Tensor kept)"
)
LIBRARY.define(
    "native_rule_backward(Tensor? q, Tensor k, Tensor v, Tensor? beta, Tensor? d_o,"
    " Tensor? d_state, Tensor kept, str rule, bool started,"
    " Tensor? decay=None, Tensor? erase_key=None) -> (Tensor dq, Tensor dk, Tensor dv,"
    " Tensor dbeta, Tensor d_state, Tensor d_decay, Tensor d_erase_key)"
)


def _state_shape(k: Tensor, v: Tensor) -> tuple[Any, ...]:  # symbols, where torch traces
    return *k.shape[:2], k.shape[3], v.shape[3]


def _chunks_per_state(keys: int, values: int, itemsize: int) -> int:
    """Return for how many chunks one state is kept; the backward pass computes the others again.

    The more, the less memory is written and read; but those of one group should fit a cache.
    """
    return min(max(STATES_AT_HAND // (keys * values * itemsize), 4), 16)


def _numbers_kept(shape: tuple[Any, ...], values: Any, itemsize: int, rule: str) -> Any:
    """Return how many numbers are kept for the backward pass, for keys of some shape."""
    b, h, t, keys = shape
    # int: also where the compiler of torch traces with symbolic sizes.
    every = _chunks_per_state(int(keys), int(values), itemsize)
    chunks = (t + CHUNK - 1) // CHUNK
    groups = (chunks + every - 1) // every
    keys, values = ((d + PAD - 1) // PAD * PAD for d in (keys, values))
    # Of every token, as in arguments.h: what was missing, under the FWM rule also what it divided
    # the state by, and products with the others of its chunk; in float32 what is missing of those.
    products = CHUNK * (2 if itemsize < torch.float64.itemsize else 1)
    per_token = {"sum": CHUNK, "delta": values + products}.get(rule, values + 1)
    return b * h * (groups * keys * values + chunks * CHUNK * per_token)


# Python's share of a call is large with small heads, and larger than it looks alone, as kernels
# drive its code and data out of the caches: what depends on sizes alone is computed once.
@functools.lru_cache(maxsize=4096)
def _sizes(
    q: torch.Size, k: torch.Size, v: torch.Size, dtype: torch.dtype, rule: str
) -> tuple[tuple[int, ...], int, Tensor, Tensor]:
    """Return the numbers that every kernel is told first, and writes a token.

    And the shapes of S_T and of what is kept, as tensors that hold one number each, for
    `torch.empty_like`: it allocates most of the results too, and the code of another function would
    have to be fetched.
    """
    itemsize, number = dtype.itemsize, _ONE[dtype]
    numbers = *k, v[3], _chunks_per_state(k[3], v[3], itemsize), RULES[rule]
    kept = number.expand(_numbers_kept(k, v[3], itemsize, rule))
    return numbers, k[2] // max(q[2], 1), number.expand(k[0], k[1], k[3], v[3]), kept


def _forward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    rule: str,
    keep: int,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return o, S_T and what the backward pass needs; S_T in `last`, if that is given."""
    if q is not None:
        q = dense(q)
    if state is not None:
        state = state.contiguous()
    k, v = dense(k), dense(v)
    shape = k.shape
    numbers, writes, like_state, like_kept = _sizes(
        shape if q is None else q.shape, shape, v.shape, k.dtype, rule
    )
    o = None if q is None else empty_like(v) if writes == 1 else _outputs(q, v)
    if last is None:
        last = torch.empty_like(like_state, memory_format=_CONTIGUOUS)
    kept = torch.empty_like(like_kept, memory_format=_CONTIGUOUS) if keep else None
    entry, gates = "fwlight_forward", _NO_GATES
    if decay is not None or erase_key is not None:
        erase_key = None if erase_key is None else dense(erase_key)
        decay = dense(decay) if decay is not None and _by_channel(decay) else decay
        entry = "fwlight_channel_forward" if _by_channel(decay) else "fwlight_gated_forward"
        gates = *_decay(decay), *_vectors(erase_key)
    no_memory = launch(
        entry,
        k.dtype,
        *numbers,
        torch.get_num_threads(),
        writes,
        *(_NOTHING if q is None else (q.data_ptr(), *q.stride())),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        *sequence(beta),
        *(_NOTHING if o is None else (o.data_ptr(), *o.stride())),
        0 if state is None else state.data_ptr(),
        last.data_ptr(),
        0 if kept is None else kept.data_ptr(),
        *gates,
    )
    if no_memory:
        _refuse("forward", k, v)
    return o, last, kept


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
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k, v, beta, S_0, the decay and the erase key."""
    if q is None or d_o is None:
        q = d_o = dq = None
    else:
        q, d_o = dense(q), dense(d_o)
        dq = empty_like(q)
    if d_state is not None:
        d_state = d_state.contiguous()
    k, v = dense(k), dense(v)
    shape = k.shape
    numbers, writes, like_state, _ = _sizes(
        shape if q is None else q.shape, shape, v.shape, k.dtype, rule
    )
    dk, dv = empty_like(k), empty_like(v)
    dbeta = None if beta is None else empty_like(beta)
    d_initial = torch.empty_like(like_state, memory_format=_CONTIGUOUS) if started else None
    d_decay = d_erase_key = None
    entry, gates = "fwlight_backward", _NO_GATES
    if decay is not None or erase_key is not None:
        if decay is not None:
            decay = dense(decay) if _by_channel(decay) else decay
            d_decay = empty_like(decay)
        if erase_key is not None:
            erase_key = dense(erase_key)
            d_erase_key = empty_like(erase_key)
        gates = *_decay(decay), *_vectors(erase_key), *_decay(d_decay), *_vectors(d_erase_key)
        entry = "fwlight_channel_backward" if _by_channel(decay) else "fwlight_gated_backward"
    no_memory = launch(
        entry,
        k.dtype,
        *numbers,
        torch.get_num_threads(),
        writes,
        *(_NOTHING if q is None else (q.data_ptr(), *q.stride())),
        k.data_ptr(),
        *k.stride(),
        v.data_ptr(),
        *v.stride(),
        *sequence(beta),
        *(_NOTHING if d_o is None else (d_o.data_ptr(), *d_o.stride())),
        *(_NOTHING if dq is None else (dq.data_ptr(), *dq.stride())),
        dk.data_ptr(),
        *dk.stride(),
        dv.data_ptr(),
        *dv.stride(),
        *sequence(dbeta),
        0 if d_state is None else d_state.data_ptr(),
        0 if d_initial is None else d_initial.data_ptr(),
        kept.data_ptr(),
        *gates,
    )
    if no_memory:
        _refuse("backward", k, v)
    return dq, dk, dv, dbeta, d_initial, d_decay, d_erase_key


def _vectors(x: Tensor | None) -> tuple[int, ...]:
    return _NOTHING if x is None else (x.data_ptr(), *x.stride())


def _outputs(q: Tensor, v: Tensor) -> Tensor:
    """Return memory for the values read, in the layout of those written."""
    tokens = q.shape[2]
    return empty_like(v if tokens == v.shape[2] else v[:, :, :tokens])


def _by_channel(decay: Tensor | None) -> bool:
    return decay is not None and decay.ndim == 4


def _decay(x: Tensor | None) -> tuple[int, ...]:
    return _vectors(x) if _by_channel(x) else sequence(x)


def _refuse(name: str, k: Tensor, v: Tensor) -> NoReturn:
    raise MemoryError(f"{name}: no memory for q, k {list(k.shape)} and v {list(v.shape)}")


def _present(like: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """Return results of an operator, which cannot be None: empty ones in their place."""
    return tuple(like.new_empty(0) if x is None else x for x in results)


def _forward_op(q: Any, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _present(v, *_forward(q, k, v, *others))


def _backward_op(q: Any, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _present(v, *_backward(q, k, v, *others))


class _Rule(Function):
    @staticmethod
    def forward(
        ctx: Any, rule: str, q: Any, k: Tensor, v: Tensor, beta: Any, S: Any, decay: Any, erase: Any
    ) -> tuple[Tensor | None, Tensor]:
        if traced(k):
            with _below_autograd():
                o, last, kept = _OP(q, k, v, beta, S, rule, LAYOUT, decay, erase)
        else:
            o, last, kept = _forward(q, k, v, beta, S, rule, LAYOUT, decay, erase)
        ctx.rule, ctx.started = rule, S is not None
        ctx.save_for_backward(q, k, v, beta, kept, decay, erase)
        ctx.set_materialize_grads(False)
        return o, last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, kept, *gates = ctx.saved_tensors
        d_o, d_last = grads
        rule, started = ctx.rule, ctx.started
        if d_last is None and rule.startswith("fwm"):
            d_last = v.new_zeros(_state_shape(k, v))
        if not traced(k):
            return None, *_backward(q, k, v, beta, d_o, d_last, kept, rule, started, *gates)
        if q is None or d_o is None:
            q = d_o = None
        arguments = (q, k, v, beta, d_o, d_last, kept, rule, started, *gates)
        dq, dk, dv, dbeta, d_initial, *d_gates = _BACKWARD_OP(*arguments)
        dq = None if q is None else dq
        dbeta = None if beta is None else dbeta
        d_gates = (None if x is None else d for x, d in zip(gates, d_gates, strict=True))
        return None, dq, dk, dv, dbeta, d_initial if started else None, *d_gates


# Without what `Function.apply` does first for torch.func, which takes microseconds also where that
# is not at work; where it is, rules do not come here.
_apply: Any = super(Function, _Rule).apply  # pyright: ignore[reportAttributeAccessIssue]


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
    q, k, v, beta, state, rule, _, *gates = (*arguments, None, None)[:9]
    inputs = q, k, v, beta, state, *gates
    if not (torch.is_grad_enabled() and _requires_grad(*inputs)):
        with _below_autograd():
            return _OP(*arguments)
    o, last = apply(_Rule, rule, *inputs)
    return _present(last, o, last, None)


def _fake_forward(
    q: Any, k: Any, v: Any, beta: Any, state: Any, rule: str, keep: int, *gates: Any
) -> Any:
    k, v = dense(k), dense(v)
    o = None if q is None else _outputs(q, v)
    kept = v.new_empty(_numbers_kept(k.shape, v.shape[3], v.itemsize, rule)) if keep else None
    return _present(v, o, v.new_empty(_state_shape(k, v)), kept)


def _fake_backward(
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    d_o: Any,
    d_state: Any,
    kept: Any,
    rule: str,
    started: bool,
    decay: Any = None,
    erase_key: Any = None,
) -> Any:
    q = None if q is None or d_o is None else dense(q)
    k, v = dense(k), dense(v)
    erase_key = None if erase_key is None else dense(erase_key)
    decay = dense(decay) if _by_channel(decay) else decay
    found = [None if x is None else empty_like(x) for x in (q, k, v, beta, decay, erase_key)]
    found.insert(4, v.new_empty(_state_shape(k, v)) if started else None)
    return _present(v, *found)


LIBRARY.impl("native_rule", _forward_op, "CPU")
LIBRARY.impl("native_rule_backward", _backward_op, "CPU")
LIBRARY.impl("native_rule", _autograd, "Autograd")
torch.library.register_fake("fwlight::native_rule", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fwlight::native_rule_backward", _fake_backward, lib=LIBRARY)
_OP = torch.ops.fwlight.native_rule.default
_BACKWARD_OP = torch.ops.fwlight.native_rule_backward.default


def _run(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor | None,
    rule: str,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    if traced(k):
        o, last, _ = _OP(q, k, v, beta, S, rule, 0, decay, erase_key)
        return None if q is None else o, last
    if torch.is_grad_enabled() and _requires_grad(q, k, v, beta, S, decay, erase_key):
        return _apply(rule, q, k, v, beta, S, decay, erase_key)
    over = S is not None and _overwriting.get() and S.is_contiguous() and not S.requires_grad
    return _forward(q, k, v, beta, S, rule, 0, decay, erase_key, S if over else None)[:2]


def native_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor | None,
    *,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule in compiled code, in chunks that stay in the processor's cache."""
    return _run(q, k, v, beta, S, "delta", decay, erase_key)


def native_sum_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor | None,
    *,
    decay: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run the sum rule in compiled code, in chunks that stay in the processor's cache."""
    return _run(q, k, v, beta, S, "sum", decay)


def native_fwm_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor | None,
    *,
    project_first: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Run the FWM rule in compiled code, in chunks that stay in the processor's cache."""
    state = v.new_zeros(_state_shape(k, v)) if S is None else S
    return _run(q, k, v, beta, state, "fwm_projected" if project_first else "fwm")
