"""The recurrent cores for `benchmarks.ops`: compiled scan, token loop, and the delta rule.

    python -m benchmarks.scans

prints the peak memory of forward and backward above that of the arguments, and as a multiple of
arguments, outputs and the gradients of both. Each is taken in a process of its own, which returns
freed memory at once.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Work, forget_peak, markdown, resident
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
SIZES = 16, 8, 256
"""Sequences, heads and tokens of the shapes scan16 and scan32 of `benchmarks.ops`."""


def _arguments(
    core: str, batch: int, heads: int, tokens: int, d: int
) -> tuple[Callable[..., Any], list[Tensor], Tensor]:
    """Return a core, what it is given, and a gradient of what it returns."""
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
        shared = [*(state(d, d)[0] for _ in range(3)), state(d)[0]]  # by all sequences
        scan, leaves = _recurrent_delta, [*leaves, state(d), *shared]
    else:
        matrices = [*(state(d, d) for _ in range(3)), state(d, 4)]
        scan, leaves = _self_reference, [keys(), *matrices]
    return scan, [x.requires_grad_() for x in leaves], normal(d)


def scan_contenders(core: str, batch: int, heads: int, tokens: int, d: int) -> dict[str, Work]:
    """What to time of a core, by name: forward and backward to all that comes in.

    `delta` is the native delta rule on keys and values of the same size, forward and backward to
    q, k, v and beta.
    """
    scan, inputs, d_o = _arguments(core, batch, heads, tokens, d)

    def ours(backend: str) -> Work:
        def call() -> object:
            return torch.autograd.grad(scan(*inputs, backend=backend)[0], inputs, d_o)

        return call

    q, k, v = (torch.randn_like(d_o) for _ in range(3))
    of_rule = [x.requires_grad_() for x in (q, k.softmax(-1), v, q[..., 0].detach().sigmoid())]

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


def peak(core: str, d: int) -> tuple[int, int]:
    """Return the bytes at peak above those there before, and those of all that must be there."""
    _, inputs, d_o = _arguments(core, *SIZES, d)
    scan_contenders(core, 1, 1, 16, d)["native"]()  # builds and warms up
    work = scan_contenders(core, *SIZES, d)["native"]
    forget_peak()
    before = resident("VmRSS")
    kept = work()
    assert kept is not None
    return resident("VmHWM") - before, 2 * sum(x.nbytes for x in (*inputs, d_o))


def main() -> None:
    """Measure every core, or the one of the command line."""
    if len(sys.argv) > 1:
        return print(*peak(sys.argv[1], int(sys.argv[2])))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    rows = []
    for core in CORES:
        for d in (16, 32):
            command = [sys.executable, "-m", "benchmarks.scans", core, str(d)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            found, needed = map(int, done.stdout.split())
            rows.append([core, d, f"{found / 1e6:.1f}", f"{found / needed:.2f}"])
    header = ["", "d", "peak MB", "x of arguments, outputs and gradients"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
