"""Parameters of which every process holds a share (FSDP2, `torch.distributed.fsdp`).

What is not sharded is left by everything here as it is. Where nothing is, PyTorch's modules for it
are not imported: not every PyTorch has them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(x: Tensor) -> bool:
    """Say whether this process holds a share of a tensor alone (a DTensor)."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """Return a tensor with what all processes hold of it, a collective on all of them.

    It can be differentiated: the gradient that every process has for the whole, the same on all of
    them, is that of its share.
    """
    shared: Any = x
    return shared.full_tensor() if is_sharded(x) else x


def share(x: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the same memory."""
    shared: Any = x
    return shared.to_local() if is_sharded(x) else x


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor the share that this process has of another one of its shape.

    Args:
        x: The same on all processes.
        like: Where it belongs; its number format and device are not those of the result.
    """
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    shared: Any = like
    # Copied, as a part of `x` would keep all of it in memory; nothing is sent.
    parts = distribute_tensor(x, shared.device_mesh, shared.placements, src_data_rank=None)
    return torch.empty_like(parts).copy_(parts)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Let every process hold all weights for a while, to read them; entered by all together.

    Within, processes may use the network each as often as they like, or not at all, where they
    otherwise have to call its parts in step.

    Args:
        module: The one that was sharded as a whole, or any other, of which nothing is asked.
    """
    units: list[Any] = [part for part in module.modules() if hasattr(part, "unshard")]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not module, recurse=False)
            unit.reshard()
