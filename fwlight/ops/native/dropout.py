"""Dropout in compiled code, as a torch operator; its mask is computed again, never stored."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.library carries no types)

from typing import Any

import torch
from torch import Tensor

from fwlight.ops.native.launch import bits, launch, operator


def native_dropout(x: Tensor, p: float) -> Tensor:
    """Zero every number of x with probability p, 0 < p < 1, and divide the others by 1 - p.

    One seed is drawn from torch's generator; which numbers go depends on it and on their places,
    not on the number of threads. Probabilities have 32 bits. Any number of derivatives.
    """
    seed = torch.randint((1 << 63) - 1, (), device=x.device)
    return _run(x, seed, p)


def _forward(x: Tensor, seed: Tensor, p: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    sizes = x.numel(), torch.get_num_threads()
    launch("fwlight_dropout", x.dtype, *sizes, x.data_ptr(), y.data_ptr(), seed.data_ptr(), bits(p))
    return y


def _keep_arguments(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    del output
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors
    return _run(g, seed, ctx.p), None, None


def _fake(x: Any, seed: Any, p: float) -> Any:
    del seed, p
    return x.new_empty(x.shape)


_run = operator(
    "native_dropout(Tensor x, Tensor seed, float p) -> Tensor",
    _forward,
    _fake,
    keep=_keep_arguments,
    gradient=_gradient,
)
