"""Evaluating a network in the middle of its training, so that training does not notice."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fwlight.compiling import uncompiled


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation of uncompiled code without gradient, and back to what was.

    Every submodule gets its own mode back, and its buffers: a random feature map may take a new
    draw for every sequence.
    """
    before = [(part, part.training, dict(part._buffers)) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), uncompiled():
            yield
    finally:
        for part, training, buffers in before:
            part.training = training
            part._buffers.update(buffers)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Switch to `evaluation_mode`; what is drawn moves no global random numbers either."""
    with same_random_numbers(), evaluation_mode(module):
        yield


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Let what follows draw without moving the global generators of PyTorch and Python."""
    python = random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
