"""The recurrent cores for `benchmarks.ops`: compiled scan, token loop, and the delta rule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Work
from fwlight.ops import delta_rule
from fwlight.ops.recurrent_scans import (
    SelfReference,
    SlowRecurrence,
    delta_lstm_scan,
    delta_rnn_scan,
    recurrent_delta_scan,
    self_referential_scan,
)

CORES = ("delta_rnn", "recurrent_delta", "delta_lstm", "srwm")


def scan_contenders(core: str, batch: int, heads: int, tokens: int, d: int) -> dict[str, Work]:
    """What to time of a core, by name: forward and backward to all that comes in.

    `delta` is the native delta rule on keys and values of the same size, forward and backward to
    q, k, v and beta.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*last: int, n: int = heads) -> Tensor:
        return torch.randn(batch, n, tokens, *last, generator=generator)

    def state(*last: int, n: int = heads) -> Tensor:
        return torch.randn(batch, n, *last, generator=generator) * d**-0.5

    def keys(n: int = heads) -> Tensor:
        return normal(d, n=n).softmax(-1)

    scan: Callable[..., Any]
    n = 3 * heads if core == "delta_lstm" else heads
    leaves = [normal(d, n=n), keys(n), normal(d, n=n), normal(n=n).sigmoid(), state(d, d, n=n)]
    if core == "delta_rnn":
        scan, leaves = delta_rnn_scan, [*leaves, state(d)]
    elif core == "delta_lstm":
        scan, leaves = delta_lstm_scan, [*leaves, state(d), state(d)]
    elif core == "recurrent_delta":
        shared = [*state(d, d)[:3], state(d)[0]]  # by all sequences
        scan, leaves = _recurrent_delta, [*leaves, state(d), *shared]
    else:
        matrices = [*(state(d, d) for _ in range(3)), state(d, 4)]
        scan, leaves = _self_reference, [keys(), *matrices]
    inputs = [x.requires_grad_() for x in leaves]
    d_o = normal(d)

    def ours(backend: str) -> Work:
        def call() -> object:
            return torch.autograd.grad(scan(*inputs, backend=backend)[0], inputs, d_o)

        return call

    rule = [normal(d), keys(), normal(d), normal().sigmoid()]
    of_rule = [x.requires_grad_() for x in rule]

    def delta() -> object:
        o, _ = delta_rule(*of_rule)
        assert o is not None  # there are queries
        return torch.autograd.grad(o, of_rule, d_o)

    return {"native": ours("native"), "token loop": ours("recurrent"), "delta": delta}


def _recurrent_delta(*x: Tensor, backend: str) -> Any:
    q, k, v, b, S, y, R_q, R_k, R_v, r_b = x
    slow = SlowRecurrence(R_q, R_k, R_v, r_b)
    return recurrent_delta_scan(q, k, v, b, S, y, slow, backend=backend)


def _self_reference(*x: Tensor, backend: str) -> Any:
    given, y, q, k, b = x
    return self_referential_scan(given, SelfReference(y, q, k, b), backend=backend)
