"""Products in the number format of their factors, also where autocast would make them shorter."""

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves tensors on the device of `x` as they are."""
    # torch knows no autocast for tensors without numbers, whose shapes are all there is of them.
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
