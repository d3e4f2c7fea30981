"""Keys that a task cannot do without, though others can; checked before torch is imported."""

from collections.abc import Mapping
from typing import Any

from fwlight.types import DataError


def require(task: Mapping[str, Any], *keys: str) -> None:
    """Check that keys of a task's configuration are given.

    Raises:
        DataError: One is null.
    """
    for key in keys:
        if task.get(key, 0) is None:
            raise DataError(f"task.{key}=null: this task needs a number here")
