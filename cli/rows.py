"""The rows of a paper's tables: `row=` of an experiment whose file lists them.

There `rows` maps the name of a row to the `key: value` pairs that tell it from the others. A key on
the command line goes before that of the row.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cli.folders import folders
from cli.overrides import unknown_option
from fwlight.errors import ConfigError


def rows() -> dict[str, dict[str, dict[str, Any]]]:
    """Return key and value of every row, by experiment and row."""
    return {k: v for folder in folders() for k, v in _rows(folder / "experiment").items()}


@cache  # every point of a sweep asks
def _rows(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if re.search("^rows:", text, re.MULTILINE):  # it takes time to parse them all
            found[path.stem] = _rows_of(path, text)
    return found


def _rows_of(path: Path, text: str) -> dict[str, dict[str, Any]]:
    try:
        found = yaml.safe_load(text)["rows"]
    except yaml.YAMLError as error:
        raise ConfigError(f"a file of conf/ cannot be read: {error}") from error
    if isinstance(found, dict) and all(isinstance(row, dict) for row in found.values()):
        return found
    raise ConfigError(f"rows in conf/experiment/{path.name} are not NAME: {{key: value}}")


def replaced(argument: str) -> list[str]:
    """Return the arguments that now do what the name of an experiment of one row did."""
    key, _, name = argument.partition("=")
    if key == "experiment":
        for experiment, listed in rows().items():
            row = name.removeprefix(f"{experiment}_")
            if row != name and row in listed:
                return [f"experiment={experiment}", f"row={row}"]
    return [argument]


def with_row(arguments: Sequence[str]) -> list[str]:
    """Return the arguments behind those of the row that they choose.

    Raises:
        ConfigError: If the experiment has no such row, or has rows and none is chosen.
    """
    given = {key: text for key, _, text in (argument.partition("=") for argument in arguments)}
    experiment, row = given.get("experiment", ""), given.get("row", "null")
    if not experiment and row == "null":
        return list(arguments)
    if len(now := replaced(f"experiment={experiment}")) > 1:
        raise ConfigError(f"experiment={experiment} is now {' '.join(now)}")
    listed = rows().get(experiment, {})
    if row == "null":
        if listed and "model" not in given:
            raise ConfigError(
                f"experiment={experiment} needs row=NAME, a row of its tables, or a model= of your "
                f"choice; its rows are {', '.join(listed)}"
            )
        return list(arguments)
    if not listed:
        fault = (
            f"experiment={experiment} has no rows." if experiment else "rows of which experiment?"
        )
        raise ConfigError(f"row={row}: {fault} They are in {', '.join(rows())}")
    if row not in listed:
        raise ConfigError(unknown_option("row", row, list(listed)))
    return [*(f"{key}={value}" for key, value in listed[row].items()), *arguments]
