"""What was called fwlight.attention is found there, with a warning."""

import pytest

import fwlight.attention
from fwlight import mixers


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FastWeightMemory", "FastWeights"),
        ("KeyValueMemory", "KeyValues"),
        ("MultiHeadAttention", "MultiHeadAttention"),
    ],
)
def test_old_name_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"fwlight.mixers.{new}"):
        assert getattr(fwlight.attention, old) is getattr(mixers, new)


def test_unknown_name_is_unknown() -> None:
    with pytest.raises(AttributeError, match="Fast"):
        _ = fwlight.attention.Fast
