"""Holding what two runs leave to each other."""

import torch
from torch import Tensor


def same(found: object, expected: object) -> None:
    """Hold nested containers to each other, to the last bit."""
    assert type(found) is type(expected)
    if isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            same(value, expected[name])
    elif isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            same(*pair)
    elif isinstance(found, Tensor) and isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
