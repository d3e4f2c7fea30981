"""The folders of options: conf/, and those of one's own, which `--config-dir` gives.

Only a command line says where options are. A checkpoint keeps their names alone, which are looked
up in the listings of these folders.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from fwlight.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"
COMMAND = "fwlight" if CONF.parent.name == "program" else "python train.py"
"""What a user types; see `fwlight.__main__`."""
FLAG = "--config-dir"

_own: tuple[Path, ...] = ()


def folders() -> tuple[Path, ...]:
    """Return conf/ and those of one's own."""
    return (CONF, *_own)


def own_arguments() -> list[str]:
    """Return what gives another process the folders of one's own."""
    return [f"{FLAG}={path}" for path in _own]


def without_own(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders of one's own that a command line gives, and the rest of it.

    Raises:
        ConfigError: The flag comes last, without a folder.
    """
    paths, rest = [], []
    given = iter(arguments)
    for argument in given:
        flag, equals, path = argument.partition("=")
        if flag != FLAG:
            rest.append(argument)
        elif path := path if equals else next(given, ""):
            paths.append(path)
        else:
            raise ConfigError(f"{FLAG} needs a folder: {FLAG} FOLDER")
    return paths, rest


@contextlib.contextmanager
def own(paths: Sequence[str]) -> Iterator[None]:
    """In the block the options of these folders can be chosen, too.

    What their files name is looked for beside each folder and in the current one, after all else.

    Raises:
        ConfigError: One is no folder of options, or has a file of a name that is taken.
    """
    global _own
    before, search = _own, list(sys.path)
    added: list[Path] = []
    for path in map(Path, paths):
        _check(path.absolute(), beside=(CONF, *added))
        added.append(path.absolute())
    _own = tuple(added)
    places = [*(str(path.parent) for path in added), os.getcwd()] if added else []
    sys.path += [place for place in dict.fromkeys(places) if place not in sys.path]
    try:
        yield
    finally:
        _own = before
        sys.path[:] = search


def _check(path: Path, *, beside: Sequence[Path]) -> None:
    if not path.is_dir():
        raise ConfigError(f"{FLAG}={path} is no folder")
    if not _listing(path):
        raise ConfigError(f"{FLAG}={path} holds no options, which are files GROUP/OPTION.yaml")
    for file in path.rglob("*.yaml"):
        name = file.relative_to(path)
        for other in beside:
            if (other / name).exists():
                raise ConfigError(f"{file} has the name of {other / name}; give it another")


def groups() -> dict[str, list[str]]:
    """Return every group of options with its options."""
    return _groups(folders())


@cache  # every key of every point of a sweep asks
def _groups(searched: tuple[Path, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder in searched:
        for group, options in _listing(folder, empty=folder == CONF).items():
            found[group] = sorted([*found.get(group, []), *options])
    return dict(sorted(found.items()))


def _listing(path: Path, *, empty: bool = False) -> dict[str, list[str]]:
    """Return the options of a folder by group; those of `_` or `.` are for its other files."""
    found = {}
    for folder in sorted(folder for folder in path.rglob("*") if folder.is_dir()):
        options = sorted(f.stem for f in folder.glob("*.yaml") if not f.stem.startswith("_"))
        group = folder.relative_to(path)
        hidden = any(part.startswith(("_", ".")) for part in group.parts)
        if (options or empty) and not hidden:
            found[group.as_posix()] = options
    return found


def file_of(group: str, option: str) -> Path:
    """Return the file of an option that is listed."""
    return next(file for x in folders() if (file := x / group / f"{option}.yaml").exists())


def imported(name: Any) -> Any:
    """Return what a `_target_` or another key of such a file names.

    Raises:
        ConfigError: It cannot be imported.
    """
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # the error below says it once
    try:
        return get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"_target_={name} cannot be imported: {error}") from error
