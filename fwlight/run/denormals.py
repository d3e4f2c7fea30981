"""Numbers below a format's smallest normal one."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def flushing_denormals() -> Generator[None]:
    """Take numbers too small for a format's exponent (float32: below 1.2e-38) for zero.

    As the compiled kernels do. A CPU is many times slower with them than with others, and features
    that underflow are full of them. Threads that are started meanwhile do the same, those that run
    already do not. Does nothing on CPUs that cannot.
    """
    possible = torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if possible:
            torch.set_flush_denormal(False)
