"""Check values against dataclasses of annotated keys; see `cli.schema` for the dataclasses."""

import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cli.kinds import Kind
from fwlight.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` (or above `above`) to `high` (or below `below`), and 0 if `or_zero`."""

    low: float = float("-inf")
    high: float = float("inf")
    above: float = float("-inf")
    below: float = float("inf")
    or_zero: bool = False

    def fault(self, value: float) -> str | None:
        """Say what is wrong with `value`, if anything."""
        if math.isnan(value):
            return "is not a number"
        if self.or_zero and value == 0:
            return None
        zero = "0 or " if self.or_zero else ""
        if value <= self.above:
            return f"must be {zero}above {_plain(self.above)}"
        if value < self.low:
            return f"must be {zero}at least {_plain(self.low)}"
        if value > self.high:
            return f"must be at most {_plain(self.high)}"
        if self.below != math.inf and value >= self.below:
            return f"must be below {_plain(self.below)}"
        return None


def _plain(bound: float) -> str:
    """Write a bound without rounding it, unless it is beyond what anybody reads."""
    return str(int(bound)) if abs(bound) < 1e15 and bound == int(bound) else f"{bound:g}"


@dataclass(frozen=True)
class Pattern:
    """Text of one shape, which `example` shows."""

    regex: str
    example: str

    def fault(self, value: str) -> str | None:
        """Say what is wrong with `value`, if anything."""
        return None if re.fullmatch(self.regex, value) else f"must look like {self.example}"


@dataclass(frozen=True)
class Because:
    """Why a key takes no other value, or, where its type is None, none at all."""

    reason: str


class Section:
    """A part of the configuration whose keys are all listed."""


class OpenSection(Section):
    """A part of the configuration whose options may bring further keys."""


class PartsSection(OpenSection):
    """A part of the configuration whose further keys are null, or what is built each."""


class WholeSection(Section):
    """A part of the configuration of which no option may lack a key."""


def check_section(values: Mapping[str, Any], schema: type[Section], where: str = "") -> None:
    """Check the resolved `values` of a section against its dataclass.

    Raises:
        ConfigError: At the first key that is unknown, missing or holds something it may not hold.
    """
    hints = get_type_hints(schema, include_extras=True)
    if issubclass(schema, WholeSection) and (
        missing := [key for key in hints if key not in values and not _is_none(hints[key])]
    ):
        raise ConfigError(
            f"{where}{missing[0]} is in none of the chosen files of conf/; let an option of one's "
            "own begin with a whole one, as `defaults: [cpu, _self_]` in conf/trainer/"
        )
    for key, value in values.items():
        name = f"{where}{key}"
        if key in hints:
            fault = _fault(value, hints[key], name)
            if fault:
                raise ConfigError(f"{name}={_shown(value)} {fault}")
        elif issubclass(schema, PartsSection):
            if value is not None and not (isinstance(value, Mapping) and "_target_" in value):
                raise ConfigError(
                    f"{name} is no section with a _target_; let its file begin with a name of its "
                    "own, and have _target_ and the keys below it"
                )
        elif not key.startswith("_") and not issubclass(schema, OpenSection):
            known = ", ".join(key for key in hints if not _is_none(hints[key]))
            raise ConfigError(f"{name} is not a key; {where.rstrip('.') or 'there'} has: {known}")


def _fault(value: Any, hint: Any, name: str) -> str | None:
    """Say why `value` does not fit the type `hint`, or None if it does."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *marks = get_args(hint)
        fault = _fault(value, base, name)
        if fault and (reason := because(hint)):
            return f"is refused: {reason}"
        for bound in (mark for mark in marks if isinstance(mark, Range | Pattern)):
            if fault and isinstance(bound, Pattern):
                return f"must look like {bound.example}"
            fault = fault or bound.fault(value)
        return fault
    if origin in (Union, types.UnionType):
        faults = [_fault(value, option, name) for option in get_args(hint)]
        if None in faults:
            return None
        bounds = [f for f in faults if f and not f.startswith("is not")]
        return bounds[0] if bounds else "is not " + " or ".join(_names(hint))
    if origin is Literal:
        fits = any(value == c and type(value) is type(c) for c in get_args(hint))
        return None if fits else "is not one of " + ", ".join(map(_shown, get_args(hint)))
    if origin is list:
        if not isinstance(value, list):
            return "is not a list"
        faults = [_fault(item, get_args(hint)[0], name) for item in value]
        return next((fault for fault in faults if fault), None)
    if issubclass(hint, Section):
        if not isinstance(value, Mapping):
            return "is not a section of keys"
        check_section(value, hint, f"{name}.")
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if hint is float else type(value) is hint
    return None if fits else f"is not {_names(hint)[0]}"


def because(hint: Any) -> str | None:
    """Return why a type is as narrow as it is, if it is said."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark.reason for mark in marks if isinstance(mark, Because)), None)


def metadata(hint: Any) -> tuple[type[Section] | None, frozenset[Kind]]:
    """Return the section that a type is, if it is one, and the kinds beside it."""
    base, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
    options = get_args(base) if get_origin(base) in (Union, types.UnionType) else [base]
    sections = [x for x in options if isinstance(x, type) and issubclass(x, Section)]
    return next(iter(sections), None), frozenset(x for x in marks if isinstance(x, Kind))


def _is_none(hint: Any) -> bool:
    return get_origin(hint) is Annotated and get_args(hint)[0] is types.NoneType


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_TYPE_NAMES |= {dict: "a section of keys", types.NoneType: "null"}


def _names(hint: Any) -> list[str]:
    """Name the types that `hint` allows."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _names(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(name for option in get_args(hint) for name in _names(option)))
    if origin is Literal:
        return [_shown(choice) for choice in get_args(hint)]
    return ["a list"] if origin is list else [_TYPE_NAMES.get(hint, "a section of keys")]


def _shown(value: Any) -> str:
    """Write `value` as on the command line."""
    return "null" if value is None else str(value).lower() if value in (True, False) else str(value)
