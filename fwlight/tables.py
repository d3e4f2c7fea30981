"""Tables of positions, which layer after layer and batch after batch asks for again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of numbers, formats and devices returned the last few times.

    It is computed anew where tensors may have no values, or operators are looked at.
    """
    # What was made in inference mode could not be used outside it.
    cached = functools.lru_cache(maxsize=8)(torch.inference_mode(False)(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return function(*arguments)
        return cached(*arguments)

    return call
