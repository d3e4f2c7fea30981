"""The name that `fwlight.mixers` had until 0.1; it goes with the version after next."""

import warnings
from typing import Any

from fwlight import mixers

_OLD_NAMES = {"FastWeightMemory": "FastWeights", "KeyValueMemory": "KeyValues"}


def __getattr__(name: str) -> Any:
    """Return what a name of this module means today, with a warning."""
    new = _OLD_NAMES.get(name, name)
    if new not in mixers.__all__:
        raise AttributeError(f"module 'fwlight.attention' has no attribute {name!r}")
    warnings.warn(
        f"fwlight.attention.{name} is fwlight.mixers.{new} now",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(mixers, new)
