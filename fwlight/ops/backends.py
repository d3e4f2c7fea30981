"""What all update rules share around their mathematics: checks, types and the back-end choice.

A rule's `BACKENDS` lists its back ends in the order in which "auto" asks them; the last one, the
specification, can always run.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from fwlight.autocast import without_autocast
from fwlight.ops import native

RECURRENT_MAX_LENGTH = 3
"""Longest sequence that "auto" runs token by token, not by "chunk". On a CPU the two forms of
the delta rule are equally fast at 2 to 4 tokens, of the sum rule at 4 to 5; "native" is faster than
both at every length (`python -m benchmarks.ops --shapes one four chunk`)."""


_NO_GATES: dict[str, Tensor] = {}


class Backend(NamedTuple):
    """One way to compute a rule.

    Attributes:
        name: What `backend=` calls it.
        run: `(q, k, v, beta, S_0, **gates) -> (o, S_T)`, with the gates that were given. It may
            rely on checked shapes, at least one token and one dtype; q is None where only a write
            is wanted. To "native" alone, an empty memory may be None: it then leaves out all
            products with it.
        obstacle: `(k, v, dtype, **gates)` -> why it cannot compute such inputs in `dtype`, or None.
        counts_writes: Whether q and o may have one row for several writes, as `run_rule` says.
    """

    name: str
    run: Callable[..., tuple[Tensor | None, Tensor]]
    obstacle: Callable[..., str | None]
    counts_writes: bool = False


def allows_native(update_rule: Callable[..., Any]) -> bool:
    """Say whether a rule, options bound, leaves its memory to compiled code: map, norms, reads."""
    return getattr(update_rule, "keywords", {}).get("backend", "auto") in ("auto", "native")


def no_obstacle(k: Tensor, v: Tensor, dtype: torch.dtype, **gates: Tensor) -> None:
    """Say that a back end runs anywhere."""


def run_rule(
    backends: tuple[Backend, ...],
    backend: str,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    initial_state: Tensor | None,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Check the arguments, choose a back end and run it in its number format.

    All but q may have n times as many rows as q: n writes a token, which is read after the last.

    The FLA kernels take half precision as it is; all others compute in float32, or in float64 if
    any argument has it. The state stays in that format and o returns to the format of v.

    Raises:
        ValueError: If shapes disagree, numbers are not floating-point numbers or `backend` is not
            one of the rule's.
        RuntimeError: If a transform of torch.func is at work on another back end than "recurrent".
    """
    _check_shapes(q, k, v, beta, initial_state)
    gates = _NO_GATES
    inputs = q, k, v, beta, initial_state
    if decay is not None or erase_key is not None:
        gates = _check_gates(k, v, decay=decay, erase_key=erase_key)
        inputs = *inputs, *gates.values()
    dtype = torch.float32
    all_float32 = True
    for x in inputs:
        if x is not None and x.dtype is not dtype:
            if not x.is_floating_point():
                _refuse_dtype(q=q, k=k, v=v, beta=beta, initial_state=initial_state, **gates)
            dtype = torch.promote_types(dtype, x.dtype)
            all_float32 = False
    name, run, _, counts_writes = _choose(backends, backend, k, v, dtype, gates)
    if q is not None and not counts_writes and q.shape[2] != k.shape[2]:
        writes = k.shape[2] // q.shape[2]
        q = pad(q[:, :, :, None], (0, 0, writes - 1, 0)).flatten(2, 3)
        arguments = backends, backend, q, k, v, beta, initial_state, decay, erase_key
        o, state = run_rule(*arguments)
        return None if o is None else o[:, :, writes - 1 :: writes], state
    if name == "native" and all_float32 and k.numel():  # decoding takes microseconds
        if not gates:
            return run(q, k, v, beta, initial_state)
        return run(q, k, v, beta, initial_state, **gates)
    state = initial_state
    if state is not None:
        state = state if state.dtype == dtype else state.to(dtype)
    elif name != "native" or k.shape[2] == 0:
        state = k.new_zeros((*k.shape[:2], k.shape[3], v.shape[3]), dtype=dtype)
    if k.shape[2] == 0:
        assert state is not None
        return _nothing_written(q, k, v, beta, state, *gates.values())
    wanted = v.dtype if name == "fla" else dtype
    arguments = [x if x is None or x.dtype == wanted else x.to(wanted) for x in (q, k, v, beta)]
    gates = {name: x if x.dtype == dtype else x.to(dtype) for name, x in gates.items()}
    if not k.is_meta and torch.is_autocast_enabled(k.device.type):
        # It would compute the products, and so the state, in half precision.
        with without_autocast(k):
            o, state = run(*arguments, state, **gates)
    else:
        o, state = run(*arguments, state, **gates)
    return o if o is None or o.dtype == v.dtype else o.to(v.dtype), state


def _choose(
    backends: tuple[Backend, ...],
    backend: str,
    k: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    gates: dict[str, Tensor],
) -> Backend:
    """Return the back end of that name or, if it cannot run, the next; the first for "auto".

    What was asked for by name and cannot run is told once, as is a machine without compiled code.
    """
    if backend != "recurrent" and native.transforms_active():
        raise RuntimeError(
            f"backend={backend!r} does not run with functorch transforms (vmap, grad, jvp and the "
            "others of torch.func); use backend='recurrent'"
        )
    asked, unable, reason = backend == "auto", "", None
    for candidate in backends:
        name, _, obstacle_of, _ = candidate
        if asked or name == backend:
            asked = True
            # Without `**` where there is nothing: each takes as long as the obstacle.
            obstacle = obstacle_of(k, v, dtype, **gates) if gates else obstacle_of(k, v, dtype)
            if obstacle is None:
                break
            # Who switched compiled code off knows.
            missing = obstacle != native.OFF and obstacle == native.absence(dtype)
            if name == backend or missing:
                unable, reason = name, obstacle
    else:
        names = ", ".join(["auto", *(x.name for x in backends)])
        raise ValueError(f"backend={backend!r} is none of {names}")
    if reason is not None:
        _warn_once(f"backend={unable!r} cannot run here ({reason}); using backend={name!r}")
    if name != "native" and backend == "auto" and k.shape[2] <= RECURRENT_MAX_LENGTH:
        return backends[-1]
    return candidate


def _nothing_written(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, state: Tensor, *gates: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return what no tokens read and leave, results of all arguments to those who differentiate."""
    dtype = v.dtype
    u = v if beta is None else beta[..., None] * v
    state = state + k.to(state.dtype).mT @ u.to(state.dtype)
    for gate in gates:
        state = state + gate.sum()  # of nothing, 0
    return None if q is None else (q.to(state.dtype) @ state).to(dtype), state


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def _check_shapes(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, state: Tensor | None
) -> None:
    shape, of_v = k.shape, v.shape
    if len(shape) != 4 or len(of_v) != 4 or tuple(shape)[:3] != tuple(of_v)[:3]:
        raise ValueError(
            f"k must be [B, H, T, K] and v [B, H, T, V], not {list(k.shape)} and {list(v.shape)}"
        )
    b, h, t, keys = shape  # slices of shapes are shapes again, which take longer
    if q is not None and q.shape != shape:
        _check_queries(q, k, v)
    if beta is not None and beta.shape != (b, h, t):
        _refuse("beta", beta, k, v, (b, h, t))
    if state is not None and state.shape != (b, h, keys, of_v[3]):
        _refuse("initial_state", state, k, v, (b, h, keys, of_v[3]))


def _check_queries(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError where k holds no whole number of writes for each query."""
    b, h, t, keys = k.shape
    tokens = q.shape[2] if q.ndim == 4 else 0
    if not tokens or t < tokens or t % tokens or q.shape != (b, h, tokens, keys):
        _refuse("q", q, k, v, k.shape)


def _refuse_dtype(**inputs: Tensor | None) -> NoReturn:
    given = ((name, x) for name, x in inputs.items() if x is not None)
    name, x = next((name, x) for name, x in given if not x.is_floating_point())
    raise ValueError(
        f"{name} is {str(x.dtype).removeprefix('torch.')}; associations are floating-point "
        f"numbers: give {name}.float()"
    )


def _check_gates(
    k: Tensor, v: Tensor, *, decay: Tensor | None, erase_key: Tensor | None
) -> dict[str, Tensor]:
    """Return the gates that are given."""
    if decay is not None and decay.shape not in (k.shape[:3], k.shape):
        _refuse("decay", decay, k, v, k.shape[:3], k.shape)
    if erase_key is not None and erase_key.shape != k.shape:
        _refuse("erase_key", erase_key, k, v, k.shape)
    given = {"decay": decay, "erase_key": erase_key}
    return {name: x for name, x in given.items() if x is not None}


def _refuse(name: str, x: Tensor, k: Tensor, v: Tensor, *shapes: tuple[int, ...]) -> NoReturn:
    raise ValueError(
        f"{name} has shape {list(x.shape)}; with k {list(k.shape)} and v {list(v.shape)} "
        f"it must be {' or '.join(str(list(shape)) for shape in shapes)}"
    )
