"""What all compiled kernels share on their way from tensors to addresses."""

# pyright: reportUnknownMemberType=false
# (torch.library carries no types)

import functools
import struct
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from fwlight.ops.native.build import FUNCTIONS, library

LIBRARY = torch.library.Library("fwlight", "DEF")
CHUNK = 16  # tokens worked on at once, as in simd.h


def dense(x: Tensor) -> Tensor:
    """Return x with a contiguous last dimension, as it is if it has one."""
    # is_contiguous, which is the rule, takes a third of the time of stride(-1).
    if x.is_contiguous() or x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    return x.contiguous()


def empty_like(x: Tensor, *last: int | torch.SymInt) -> Tensor:
    """Return new memory for a tensor `[B, H, T, ...]`, heads inside tokens if x has them so.

    The dimensions after T are those of x unless `last` says otherwise.
    """
    if not last and x.is_contiguous():
        return torch.empty_like(x)
    b, h, t = x.shape[:3]
    rest = last or x.shape[3:]
    if x.stride(1) < x.stride(2):
        return x.new_empty((b, t, h, *rest)).transpose(1, 2)
    return x.new_empty((b, h, t, *rest))


def sequence(x: Tensor | None) -> tuple[int, ...]:
    """Return address and strides of B, H and T; zeros for nothing."""
    if x is None:
        return 0, 0, 0, 0
    stride = x.stride()
    return x.data_ptr(), stride[0], stride[1], stride[2]


def launch(name: str, dtype: torch.dtype, *arguments: int) -> int:
    """Call a compiled function, which returns zero unless memory ran out."""
    return _function(name, dtype)(_format(len(arguments)).pack(*arguments))


def bits(x: float) -> int:
    """Return the integer of the same 64 bits."""
    return struct.unpack("q", struct.pack("d", x))[0]


def traced(x: Tensor) -> bool:
    """Return whether the operators must be seen; dispatching one written in Python takes time."""
    return type(x) is not Tensor or torch.compiler.is_compiling()


def operator(
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    keep: Callable[..., None] | None = None,
    gradient: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define an operator of torch's; return a function that calls it.

    Where nothing has to see the operator that goes past torch's dispatcher, with derivatives none
    the less: of small tensors the way through it takes longer than the computing.

    Args:
        schema: Name, arguments, of which the first is a tensor, and results, as `torch.library`
            has them.
        compute: Takes tensors on a CPU.
        fake: Takes tensors without values, and returns results without values.
        keep: What `torch.library.register_autograd` takes as `setup_context`.
        gradient: What that takes as `backward`; None for an operator without derivatives.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, compute, "CPU")
    torch.library.register_fake(f"fwlight::{name}", fake, lib=LIBRARY)
    seen, unseen = getattr(torch.ops.fwlight, name), compute
    if gradient is not None:
        assert keep is not None
        torch.library.register_autograd(
            f"fwlight::{name}", gradient, setup_context=keep, lib=LIBRARY
        )
        unseen = _with_derivatives(name, compute, keep, gradient)

    def run(x: Tensor, *inputs: Any) -> Any:
        return (seen if traced(x) else unseen)(x, *inputs)

    return run


def _with_derivatives(
    name: str, compute: Callable[..., Any], keep: Callable[..., None], gradient: Callable[..., Any]
) -> Callable[..., Any]:
    def compute_and_keep(ctx: Any, *inputs: Any) -> Any:
        output = compute(*inputs)
        keep(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(compute_and_keep), "backward": staticmethod(gradient)}
    kind: Any = type(Function)
    function = kind(name, (Function,), methods)
    # Without what `Function.apply` does first for torch.func, where `can_run` is false.
    apply = cast(Any, super(Function, function)).apply

    def call(*inputs: Any) -> Any:
        return apply(*inputs) if torch.is_grad_enabled() else compute(*inputs)

    return call


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[[bytes], int]:
    source = next(source for source, names in FUNCTIONS.items() if name in names)
    return getattr(library(dtype, source), name)


@functools.cache
def _format(count: int) -> struct.Struct:
    # Several times as fast as filling an array of ctypes.
    return struct.Struct(f"{count}q")
