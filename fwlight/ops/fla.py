"""The Triton kernels of flash-linear-attention (package fla-core), used where they can run.

Written against fla-core 0.3.2 to 0.6.0, whose arguments agree. Those of 0.5.2 and 0.6.0 compute in
float16 what the token loop does, in Triton's interpreter (tests/ops/interpreted_fla.py).
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_KEY_SIZE = 256
"""Longest key that the kernels take."""


def obstacle(k: Tensor, v: Tensor, dtype: torch.dtype, **gates: Tensor) -> str | None:
    """Return why the kernels cannot run on such inputs, or None if they can."""
    if not k.is_cuda:
        return f"the tensors are on {k.device.type}, not cuda"
    if v.dtype not in (torch.float16, torch.bfloat16):
        return f"the values are {str(v.dtype).removeprefix('torch.')}, not bfloat16 or float16"
    if k.shape[3] > MAX_KEY_SIZE:
        return f"the keys have size {k.shape[3]}, above {MAX_KEY_SIZE}"
    if k.shape[3] % 2 or v.shape[3] % 2:
        return f"keys of size {k.shape[3]} and values of size {v.shape[3]} are not both even"
    if k.shape[2] < k.shape[1]:
        return "there are fewer tokens than heads, which fla-core takes for another layout"
    if gates:
        return "gates run in the chunk form"
    return _import_obstacle()


def fla_delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule with `fla.ops.delta_rule.chunk_delta_rule`."""
    kernel = importlib.import_module("fla.ops.delta_rule").chunk_delta_rule
    return _call(kernel, q, k, v, S, beta=beta.transpose(1, 2))


def fla_sum_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, S: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Run the sum rule with `fla.ops.simple_gla.chunk_simple_gla`, without a gate."""
    kernel = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    return _call(kernel, q, k, v if beta is None else beta[..., None] * v, S)


def _call(
    kernel: Callable[..., Any], q: Tensor | None, k: Tensor, v: Tensor, S: Tensor, **extra: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Call a kernel in its own layout `[B, T, H, D]`, without its default scale of K^(-1/2)."""
    # The kernels always read; a write-only call reads with the keys and drops the result.
    queries = k if q is None else q
    o, state = kernel(
        q=queries.transpose(1, 2),
        k=k.transpose(1, 2),
        v=v.transpose(1, 2),
        scale=1.0,
        initial_state=S.float(),
        output_final_state=True,
        **extra,
    )
    return None if q is None else o.transpose(1, 2), state


@functools.cache
def _import_obstacle() -> str | None:
    try:
        importlib.import_module("fla.ops.delta_rule")
        importlib.import_module("fla.ops.simple_gla")
    except Exception as error:  # a Triton that does not match fails in many ways
        return f"fla-core cannot be imported: {type(error).__name__}: {error}"
    return None
