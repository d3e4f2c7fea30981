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

NOTHING_LEFT = -100.0
"""Least log of a decay that they are given: they subtract running sums of them, which -inf, less
than which e^-100 is no more in float32, would make NaN."""

_MODULES = {
    None: ("delta_rule", "simple_gla"),
    3: ("gated_delta_rule", "simple_gla"),
    4: ("kda", "gla"),
}
"""Modules below fla.ops with the kernels of both rules, by the dimensions of a decay."""


def obstacle(
    k: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    *,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> str | None:
    """Return why the kernels cannot run on such inputs, or None if they can."""
    if not k.is_cuda:
        return f"the tensors are on {k.device.type}, not cuda"
    if v.dtype not in (torch.float16, torch.bfloat16):
        return f"the values are {str(v.dtype).removeprefix('torch.')}, not bfloat16 or float16"
    if erase_key is not None:
        return "fla-core's kernels erase under the key that they write under"
    if k.shape[3] > MAX_KEY_SIZE:
        return f"the keys have size {k.shape[3]}, above {MAX_KEY_SIZE}"
    if k.shape[3] % 2 or v.shape[3] % 2:
        return f"keys of size {k.shape[3]} and values of size {v.shape[3]} are not both even"
    if k.shape[2] < k.shape[1]:
        return "there are fewer tokens than heads, which fla-core takes for another layout"
    return _import_obstacle(_MODULES[None if decay is None else decay.ndim])


def fla_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    decay: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule, with a decay as Gated DeltaNet or, one a channel, as KDA."""
    if decay is None:
        kernel = _module("delta_rule").chunk_delta_rule
    elif decay.ndim == 3:
        kernel = _module("gated_delta_rule").chunk_gated_delta_rule
    else:
        kernel = _module("kda").chunk_kda
    return _call(kernel, q, k, v, S, decay, beta=beta.transpose(1, 2))


def fla_sum_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor,
    *,
    decay: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run the sum rule as simple gated linear attention or, with a decay a channel, as GLA."""
    by_channel = decay is not None and decay.ndim == 4
    kernel = _module("gla").chunk_gla if by_channel else _module("simple_gla").chunk_simple_gla
    return _call(kernel, q, k, v if beta is None else beta[..., None] * v, S, decay)


def _call(
    kernel: Callable[..., Any],
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    S: Tensor,
    decay: Tensor | None,
    **extra: Tensor,
) -> tuple[Tensor | None, Tensor]:
    """Call a kernel in its own layout `[B, T, H, D]`, without its default scale of K^(-1/2)."""
    # The kernels always read; a write-only call reads with the keys and drops the result.
    queries = k if q is None else q
    if decay is not None:
        extra["g"] = decay.float().clamp(min=NOTHING_LEFT).transpose(1, 2)
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
def _import_obstacle(modules: tuple[str, ...]) -> str | None:
    try:
        for name in modules:
            _module(name)
    except Exception as error:  # a Triton that does not match fails in many ways
        return f"fla-core cannot be imported: {type(error).__name__}: {error}"
    return None


def _module(name: str) -> Any:
    return importlib.import_module(f"fla.ops.{name}")
