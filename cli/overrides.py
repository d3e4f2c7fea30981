"""One `key=value` of a command line: read it, check it, put it into a configuration.

`_target_` and interpolations come from the YAML files alone, never from a command line or, by way
of the texts that it stores, from a checkpoint.
"""

import difflib
import itertools
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cli.folders import COMMAND, FLAG, groups
from cli.kinds import Kind
from cli.schema import kinds_of, why_refused
from fwlight.errors import ConfigError

MOST_POINTS = 100_000
"""Of a sweep, and values of one of its keys."""


def actions() -> list[str]:
    """Return what `action` can be: the options of a group of which every file is composed."""
    return groups()["action"]


def parse(argument: str, *, sweep: bool = False) -> tuple[str, Any]:
    """Read one `key=value` into key and value; of a sweep, the value is a list of texts.

    Raises:
        ConfigError: If it is no such thing, or names several values outside a sweep.
    """
    key, equals, text = argument.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"{argument!r} is not key=value; {COMMAND} --help shows the keys")
    if Kind.TEXT in kinds_of(key):
        if not text.strip():  # as of a shell variable that is not set
            raise ConfigError(f"{key}= is empty; give it a value or leave it out")
        value = None if text == "null" else text
        return key, [text] if sweep else value
    try:
        override: Override = OverridesParser.create().parse_override(argument)
    except RecursionError as error:
        raise ConfigError(f"{argument!r} cannot be read: it has too many brackets") from error
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ConfigError(
            f"{argument!r} cannot be read; quote special characters: \"{key}='...'\""
        ) from error
    key = override.get_key_element() if override.package else override.key_or_group
    if override.type != OverrideType.CHANGE or (override.package and not chooses_option(key)):
        raise ConfigError(f"{argument!r}: only key=value works, for keys and groups of conf/")
    if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        raise ConfigError(f"{argument!r} does not name its values; write a,b,c or range(1,9,2)")
    if sweep:
        return key, _swept(override) if override.is_sweep_override() else [text]
    if override.is_sweep_override():
        raise ConfigError(f"{argument!r} has several values: {COMMAND} -m runs them all")
    value = override.value()
    if "${" in text or isinstance(value, dict):
        raise ConfigError(f"{argument!r}: interpolations and sections belong into YAML files")
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        raise ConfigError(f"{argument!r}: a list may hold plain values only")
    if chooses_option(key):
        _check_option(key, value)
    return key, value


def _swept(override: Override) -> list[str]:
    try:
        texts = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{override.input_line!r}: {error}") from error
    if not 1 <= len(texts) <= MOST_POINTS:
        raise ConfigError(f"{override.input_line!r} has no values, or more than {MOST_POINTS}")
    return texts


def chooses_option(key: str) -> bool:
    """Say whether a key names a group, or a group for one part of the network: group@part."""
    return key.partition("@")[0] in groups()


def _check_option(group: str, value: Any) -> None:
    options = groups()[group.partition("@")[0]]
    if isinstance(value, list) and Kind.SEVERAL not in kinds_of(group):
        raise ConfigError(f"{group}={value}: of this group only one option can be chosen")
    for option in value if isinstance(value, list) else [value]:
        option = "null" if option is None else option
        if option not in options:
            unknown = unknown_option(group, str(option), options)
            raise ConfigError(f"{unknown}; {FLAG} FOLDER adds those of one's own")


def unknown_option(key: str, option: str, options: list[str]) -> str:
    """Say that a key has no such option, which it has, and which was perhaps meant."""
    near = difflib.get_close_matches(option, options, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    return f"{key}={option} is no option{guess} ({', '.join(options) or 'there is none'})"


def set_value(config: DictConfig, choices: dict[str, str], key: str, value: Any) -> None:
    """Set an existing leaf of the configuration."""
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        inner = (
            node._get_node(part, validate_access=False) if isinstance(node, DictConfig) else None
        )
        if inner is None or part.startswith("_"):
            raise ConfigError(_unknown(config, choices, node, parts, depth))
        node = inner
    if isinstance(node, DictConfig) and not node._is_none() and value is not None:
        keys = ", ".join(_keys(node)) or "it has none"
        raise ConfigError(f"{key} is a section; set one of its keys: {keys}")
    if type(value) is int and isinstance(node._value(), float):
        value = float(value)
    OmegaConf.update(config, key, value)


def _unknown(
    config: DictConfig, choices: dict[str, str], node: Any, parts: list[str], depth: int
) -> str:
    """Say what is wrong with a key of which the part at `depth` does not exist."""
    key, where = ".".join(parts), ".".join(parts[:depth])
    if reason := why_refused(key):
        return f"{key} is refused: {reason}"
    known = _keys(node) if isinstance(node, DictConfig) else []
    if not where:
        bare = {x for x in actions() if not _keys(config[x])}
        known = [x for x in dict.fromkeys([*groups(), *known]) if x not in bare]
        known = [x for x in known if Kind.DERIVED not in kinds_of(x)]
    near = difflib.get_close_matches(parts[depth], known, n=1)
    guesses = [leaf for leaf in _leaves(config) if leaf.split(".")[-1] == parts[-1]]
    guesses += [f"{where}.{name}" if where else name for name in near]
    guess = f"; did you mean {guesses[0]}?" if guesses else ""
    group = where.replace(".", "/")
    place = f"{group}={choices[group]}" if group in choices else where or "keys"
    return f"{key} is not a key{guess} ({place}: {', '.join(known) or 'no keys'})"


def _keys(node: DictConfig) -> list[str]:
    return [str(key) for key in node if not str(key).startswith("_")]


def _leaves(node: DictConfig, where: str = "") -> Iterator[str]:
    for key in _keys(node):
        inner = node._get_node(key)
        if Kind.DERIVED in kinds_of(where + key):
            continue
        if isinstance(inner, DictConfig) and not inner._is_interpolation():
            yield from _leaves(inner, f"{where}{key}.")
        else:
            yield f"{where}{key}"
