"""A short check for people with a CUDA GPU: `python -m benchmarks.gpu_smoke`.

No part of fwlight has been run on a GPU by its authors. This script compares the rules on the GPU
with the token-by-token form in float64 on the CPU, back end by back end, then trains 20 steps of
the default model with `trainer=gpu`, and on two GPUs with `trainer=ddp`. It prints one line a
check and exits with 1 if one failed; please report what it prints.
"""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwlight.ops import delta_rule, sum_rule

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def main() -> int:
    """Run every check; 0 if all passed, 1 if one failed, 2 without a GPU."""
    if not torch.cuda.is_available():
        print("error: torch finds no CUDA GPU; nothing was checked", file=sys.stderr)
        return 2
    print(
        f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    )
    results = [
        check_rule(rule, backend, dtype)
        for rule in (sum_rule, delta_rule)
        for backend in ("chunk", "fla", "auto")
        for dtype in (torch.float32, torch.bfloat16)
    ]
    results.append(check_training("trainer=gpu", "trainer.precision=bf16-mixed"))
    if torch.cuda.device_count() > 1:
        results.append(
            check_training("trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=2")
        )
    print(f"{sum(results)} of {len(results)} checks passed")
    return 0 if all(results) else 1


def check_rule(rule: Callable[..., Any], backend: str, dtype: torch.dtype) -> bool:
    """Compare o, the final state and the gradient of k with float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.rand(2, 4, 130, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    q, k = q / q.sum(-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    v = torch.randn(2, 4, 130, 32, generator=generator, dtype=torch.float64)
    beta = torch.rand(2, 4, 130, generator=generator, dtype=torch.float64)
    expected = outcome(rule, "recurrent", q, k, v, beta)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = outcome(rule, backend, *(x.to("cuda", dtype) for x in (q, k, v, beta)))
    error = max(
        ((a.double().cpu() - e).norm() / e.norm()).item()
        for a, e in zip(actual, expected, strict=True)
    )
    passed = error < TOLERANCE[dtype]
    note = f"  ({caught[0].message})" if caught else ""
    name = getattr(rule, "__name__", str(rule))
    print(
        f"{'ok  ' if passed else 'FAIL'} {name} {backend} {dtype}: relative error {error:.1e}{note}"
    )
    return passed


def outcome(
    rule: Callable[..., Any],
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
) -> tuple[Tensor, ...]:
    """Return o, the final state and the gradient of k of the sum of o."""
    k = k.detach().requires_grad_()
    o, state = rule(q, k, v, beta, backend=backend)
    (gradient,) = torch.autograd.grad(o.float().sum() if o.dtype != torch.float64 else o.sum(), k)
    return o.detach(), state.detach(), gradient


def check_training(*overrides: str) -> bool:
    """Train 20 steps through the command line."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable,
                "train.py",
                *overrides,
                "trainer.max_steps=20",
                "optimizer.warmup_steps=5",
                f"run_dir={folder}/run",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [""]
    print(f"{'FAIL' if done.returncode else 'ok  '} {' '.join(overrides)}: {last[0]}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
