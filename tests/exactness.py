"""Whether what two runs leave is the same."""

import torch


def identical(one, other):
    """Whether two values are of one type and, bit for bit, of one content."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (one, other)))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return one == other
