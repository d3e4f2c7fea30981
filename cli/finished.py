"""What decides a run's results, and whether the summary in a folder is of a run with just that."""

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cli.composition import Composition
from cli.folders import folders
from cli.kinds import Kind
from cli.schema import kinds_of
from cli.stored import leaves


def settings(composition: Composition) -> dict[str, Any]:
    """Return what decides a run's results, in one level: options by group, values by key.

    The names of classes are left out, for which the option stands: a class may get another name.
    """
    options = {
        group: option
        for group, option in composition.choices.items()
        if (section := group.partition("@")[0].partition("/")[0]) in composition.config
        and Kind.OF_A_START not in kinds_of(section)
        and _classes({section: composition.config[section]})
    }
    return {**options, **_values(composition.config)}


def is_finished(folder: Path, composition: Composition) -> bool:
    """Say whether a folder holds the summary of a run with these very settings.

    What is damaged says nothing, so that the run is made, or completed, again.
    """
    try:
        summary = json.loads(_text(folder / "summary.json"))
        if "settings" in summary:
            return _same(dict(summary["settings"]), settings(composition), composition)
        # Earlier versions had them in config.yaml alone.
        config = yaml.safe_load(_text(folder / "config.yaml"))
        return _is_finished_earlier(summary, config, composition)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    except yaml.YAMLError:
        return False


def drop_other_summary(folder: Path, composition: Composition) -> None:
    """Remove the summary of a run with other settings, before a folder's training goes on."""
    if not is_finished(folder, composition):
        (folder / "summary.json").unlink(missing_ok=True)


def _text(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for, and a device has no end
        raise OSError(errno.EINVAL, "not a file", str(path))
    return path.read_text(encoding="utf-8")


def _same(old: dict[str, Any], new: dict[str, Any], composition: Composition) -> bool:
    if any(key not in new or not _equal(value, new[key]) for key, value in old.items()):
        return False
    # A key that was not there yet came with a later version, whose default changes nothing.
    return not composition.asked & (new.keys() - old.keys())


def _equal(old: Any, new: Any) -> bool:
    # true is not 1
    return old == new and isinstance(old, bool) == isinstance(new, bool)


def _is_finished_earlier(summary: Any, config: Any, composition: Composition) -> bool:
    trainer, step = config["trainer"], summary["global_step"]
    if type(step) is not int:
        return False
    if (
        step < trainer["max_steps"]
        and trainer["max_time"] is None
        and "early_stopping" not in config["callbacks"]
    ):
        return False  # the configuration is of a start after that of the summary
    if not _same(_values(config), _values(composition.config), composition):
        return False
    new = _classes(composition.config)
    other = {name for key, name in _classes(config).items() if new.get(key) != name}
    # One that no option names any more has got another name.
    return not other or not other & _classes_of_options()


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in leaves(config)
        if Kind.NO_RESULT not in kinds_of(key) and not key.rpartition(".")[2].startswith("_")
    }


def _classes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in leaves(config)
        if key.endswith("._target_") and Kind.NO_RESULT not in kinds_of(key)
    }


def _classes_of_options() -> set[str]:
    files = (file for folder in folders() for file in folder.rglob("*.yaml"))
    words = (file.read_text(encoding="utf-8").split() for file in files)
    return {word for text in words for word in text}
