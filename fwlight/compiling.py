"""torch.compile of a network, and running it as it is written all the same."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

METHODS = ("forward", "features", "last_layer", "nll")
"""What training and evaluation call of a network, where it has them."""


def compile_network(network: nn.Module) -> None:
    """Let a network's `METHODS` run compiled, each from its first call on.

    Parameters and buffers keep their names. Dropout draws the same masks as without, so losses
    differ by rounding alone. A length that changes becomes a symbol, so that few lengths compile
    once more.
    """
    options: dict[str, Any] = {"fallback_random": True}
    for name in METHODS:
        if hasattr(network, name):
            setattr(network, name, torch.compile(getattr(network, name), options=options))


def is_compiled(network: nn.Module) -> bool:
    """Say whether `compile_network` was called for a network."""
    return any(name in vars(network) for name in METHODS)


def uncompiled() -> AbstractContextManager[Any]:
    """Let compiled modules run as they are written.

    What is compiled calls no observer, and for a few steps of another shape it does not pay.
    """
    return torch.compiler.set_stance("force_eager")
