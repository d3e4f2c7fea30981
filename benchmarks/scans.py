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
    if core == "delta_rnn":
        leaves = [normal(d), keys(), normal(d), normal().sigmoid(), state(d, d), state(d)]
        scan = delta_rnn_scan
    elif core == "delta_lstm":
        n = 3 * heads
        leaves = [normal(d, n=n), keys(n), normal(d, n=n), normal(n=n).sigmoid()]
        leaves += [state(d, d, n=n), state(d), state(d)]
        scan = delta_lstm_scan
    elif core == "recurrent_delta":
        leaves = [normal(d), normal(d), normal(d), normal(), state(d, d), state(d)]
        leaves += [*state(d, d)[:3], state(d)[0]]  # shared by all sequences

        def scan(*x: Tensor, backend: str) -> Any:
            return recurrent_delta_scan(*x[:6], SlowRecurrence(*x[6:]), backend=backend)

    else:
        leaves = [normal(d).softmax(-1), *(state(d, d) for _ in range(3)), state(d, 4)]

        def scan(*x: Tensor, backend: str) -> Any:
            return self_referential_scan(x[0], SelfReference(*x[1:]), backend=backend)

    inputs = [x.requires_grad_() for x in leaves]
    d_o = normal(d)

    def ours(backend: str) -> Work:
        def call() -> object:
            return torch.autograd.grad(scan(*inputs, backend=backend)[0], inputs, d_o)

        return call

    rule = [normal(d), keys(), normal(d), normal().sigmoid()]
    of_rule = [x.requires_grad_() for x in rule]

    def delta() -> object:
        return torch.autograd.grad(delta_rule(*of_rule)[0], of_rule, d_o)

    return {"native": ours("native"), "token loop": ours("recurrent"), "delta": delta}
