"""The one door to compiled code: whether it may run, and on what.

It may not in a process that FWLIGHT_NATIVE=0 was given to, nor inside `switched_off`. What belongs
to one memory asks that memory's back end too, see `fwlight.ops.backends.allows_native`.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fwlight.errors import ConfigError
from fwlight.ops.native.build import build_obstacle

SWITCH = "FWLIGHT_NATIVE"
OFF = f"{SWITCH}=0 switches compiled code off"


_asked = os.environ.get(SWITCH, "")
if _asked not in ("", "0", "1"):
    raise ConfigError(f"{SWITCH}={_asked} is neither 0 (no compiled code) nor 1")
_off = ContextVar("off", default=_asked == "0")


@contextmanager
def switched_off() -> Generator[None]:
    """Let no compiled code begin, as FWLIGHT_NATIVE=0 does for a whole process.

    What began before goes on: backward passes, and networks that torch has compiled already.
    """
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


@torch.compiler.assume_constant_result  # pyright: ignore[reportUnknownMemberType]
def absence(dtype: torch.dtype, source: str = "rules") -> str | None:
    """Return why there is no compiled code for numbers of `dtype`, or None if there is."""
    if _off.get():
        return OFF
    return build_obstacle(dtype, source)


def obstacle(
    k: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    *,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> str | None:
    """Return why a rule's kernels cannot compute such inputs in `dtype`, or None if they can."""
    if not k.is_cpu:
        return f"the tensors are on {k.device.type}, not cpu"
    # numel, for nearly every call, is less than half the time of the two shapes.
    if not (k.numel() and v.numel()) and 0 in (k.shape[3], v.shape[3]):
        return f"keys of size {k.shape[3]} and values of size {v.shape[3]} hold nothing"
    if decay is None and erase_key is None:
        return absence(dtype)
    by_channel = decay is not None and decay.ndim == 4
    return absence(dtype, "channel_rules" if by_channel else "gated_rules")


def can_run(x: Tensor) -> bool:
    """Say whether the operators that are called without a rule around them take such numbers."""
    # torch.func knows no operators defined in Python.
    return x.is_cpu and not transforms_active() and absence(x.dtype) is None


def transforms_active() -> bool:
    """Say whether a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore
