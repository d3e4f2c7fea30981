"""Configurations that come out of a checkpoint: compose them anew, or compare with a new one.

Only group choices and `key=value` texts are composed, through the same checks as a command line; a
`_target_` never comes from a checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.composition import Composition, compose_config
from cli.folders import FLAG, groups
from cli.kinds import Kind
from cli.overrides import actions
from cli.rows import replaced
from cli.schema import kinds_of
from fwlight.errors import CheckpointError, ConfigError


def before_checkpoint(arguments: Sequence[str]) -> list[str]:
    """Return what can be checked of a command line before its checkpoint is read.

    Keys of other actions than fit belong to the checkpoint's task and model, which may not be the
    default ones; `recompose` checks them.
    """
    if not any(text.startswith("action=") and text != "action=fit" for text in arguments):
        return list(arguments)
    return [text for text in arguments if _is_of_a_start(text)]


def recompose(stored: Any, arguments: Sequence[str]) -> Composition:
    """Compose the configuration that a checkpoint was made with, the command line last.

    What belongs to a machine or to one run (trainer, callbacks, logger, debug, run_dir and the
    like) is taken from the command line alone.

    Args:
        stored: The checkpoint's record: "choices" by group, "overrides" as `key=value` texts and
            the resulting "config".
        arguments: The command line.

    Raises:
        CheckpointError: If the record is no such thing.
        ConfigError: If it no longer fits conf/, or the command line asks for another model.
    """
    choices, overrides, _ = _record(stored)
    texts = [f"{group}={option}" for group, option in choices.items()] + overrides
    texts = [now for text in texts for now in replaced(text)]
    merged: dict[str, str] = {}
    for text in [*texts, *arguments]:
        if text in arguments or not _is_of_a_start(text):
            merged[text.partition("=")[0]] = text
    for key in choices:
        if key in merged and merged[key] not in arguments:
            _check_there(merged[key])
    composition = compose_config(list(merged.values()))
    _refuse_changes(stored, composition, {Kind.ARCHITECTURE})
    return composition


def check_resume(stored: Any, composition: Composition) -> list[str]:
    """Compare the configuration of a run with that of the checkpoint it goes on from.

    Returns:
        One warning if training continues with other values, which are then in force.

    Raises:
        CheckpointError: If the checkpoint holds no configuration.
        ConfigError: If architecture, task or data differ, naming the key and both values.
    """
    _refuse_changes(stored, composition, {Kind.DATA, Kind.ARCHITECTURE})
    changes = [
        f"{key}={new} (was {old})"
        for key, old, new in _changes(stored, composition)
        if Kind.TRAINING in kinds_of(key)
    ]
    if any(text.startswith("seed=") for text in changes):
        changes.append("the random state is the checkpoint's")
    return [f"resuming with {', '.join(changes)}"] if changes else []


def _check_there(choice: str) -> None:
    """Look an option of a checkpoint up in the listings of the folders that there are."""
    key, _, option = choice.partition("=")
    group = key.partition("@")[0]
    if option not in groups().get(group, []):
        raise ConfigError(
            f"the checkpoint was trained with {choice}, which is no option here: give {FLAG} "
            f"FOLDER, the one that holds {group}/{option}.yaml"
        )


def _is_of_a_start(argument: str) -> bool:
    key = argument.partition("=")[0]
    return Kind.OF_A_START in kinds_of(key) or key.partition(".")[0] in actions()


def _refuse_changes(stored: Any, composition: Composition, refused: set[Kind]) -> None:
    choices, _, _ = _record(stored)
    changes = [
        change
        for change in _changes(stored, composition)
        # What checks a configuration may have moved, and shapes nothing.
        if kinds_of(change[0]) & refused and not change[0].endswith(("._check_", "._without_"))
    ]
    # What other keys fill repeats them: from a class that may have moved, or asks for no more.
    repeated = ("_target_", "dropout")
    changes = [
        c
        for c in changes
        if Kind.DERIVED not in kinds_of(c[0]) or not (c[0].endswith(repeated) or c[2] is None)
        if not {"attention", "memory"} & {*c[0].split(".")}
    ]
    if not changes:
        return
    # Another task brings other defaults of all kinds: it is what was meant.
    key, old, new = min(changes, key=lambda change: Kind.DATA not in kinds_of(change[0]))
    for group in {**choices, **composition.choices}:
        option = composition.choices.get(group, "the model's" if "@" in group else None)
        section = group.partition("@")[2] or group.replace("/", ".")
        if key.startswith(f"{section}.") and option != choices.get(group):
            key, old, new = group, choices.get(group), option
            break
    raise ConfigError(
        f"{key}={new}, but the checkpoint was trained with {key}={old}; use that, or start anew in "
        "another run_dir"
    )


def _record(stored: Any) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """Take a checkpoint's record apart, believing nothing of it."""
    record = stored if isinstance(stored, Mapping) else {}
    choices, overrides, config = (record.get(key) for key in ("choices", "overrides", "config"))
    if (
        isinstance(choices, dict)
        and isinstance(overrides, list)
        and isinstance(config, dict)
        and all(isinstance(text, str) for text in (*choices, *choices.values(), *overrides))
    ):
        return choices, overrides, config
    raise CheckpointError("the checkpoint holds no configuration: train.py did not write it")


def _changes(stored: Any, composition: Composition) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value wherever two configurations differ.

    A key that the old one lacks came with a later version, and what it changes by default is
    nothing; weights that do not fit are found when they are loaded. Another option of its group is
    no default.
    """
    choices, _, config = _record(stored)
    old, new = dict(leaves(config)), dict(leaves(composition.config))
    for key in new.keys() - old.keys():
        group = key.partition(".")[0]
        if Kind.DATA in kinds_of(key) and choices.get(group) != composition.choices.get(group):
            yield key, None, new[key]
    for key, value in old.items():
        if key not in new or value != new[key]:
            yield key, value, new.get(key)


def leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf of a configuration."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
