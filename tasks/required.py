"""What keys of a task must be: given, or large enough; no torch is needed to know."""

from collections.abc import Mapping, Sequence
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


def check_least(least: int, /, **values: float | None) -> None:
    """Check that keys of a task's configuration are not below a number, where they are given.

    Raises:
        DataError: One is.
    """
    for key, value in values.items():
        if value is not None and value < least:
            raise DataError(f"task.{key}={value} is too small; it must be at least {least}")


def check_choices(**given: tuple[str, Sequence[str]]) -> None:
    """Check that keys of a task's configuration are what they can be: values and their choices.

    Raises:
        DataError: One is none of its choices.
    """
    for key, (value, choices) in given.items():
        if value not in choices:
            raise DataError(f"task.{key}={value} is none of {', '.join(choices)}")
