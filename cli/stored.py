"""Configurations that come out of a checkpoint: compose them anew, or compare with a new one.

Only group choices and `key=value` texts are composed, through the same checks as a command line; a
`_target_` never comes from a checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.composition import Composition, compose_config
from cli.rows import replaced
from fwlight.errors import CheckpointError, ConfigError

_MACHINE = ("trainer", "callbacks", "logger", "debug")
_ONE_RUN = (
    *("action", "run_dir", "resume", "ckpt", "prompt", "input", "output", "generate"),
    *("translate", "rank_timeout", "diagnostics", "compile"),
)
_ARCHITECTURE = ("model.", "encoder.", "decoder.", "cross.", "alternate.", "size.", "network.")
_FREE = (
    *("task.path", "task.train", "task.valid", "task.test"),
    *("task.eval_batch_size", "task.eval_batch_tokens", "task.num_workers"),
)
_TRAINING = (
    *("optimizer.", "loss.", "seed", "trainer.max_steps", "trainer.precision"),
    *("trainer.gradient_clip_val", "trainer.accumulate_grad_batches"),
)


def before_checkpoint(arguments: Sequence[str]) -> list[str]:
    """Return what can be checked of a command line before its checkpoint is read.

    Keys of other actions than fit belong to the checkpoint's task and model, which may not be the
    default ones; `recompose` checks them.
    """
    if not any(text.startswith("action=") and text != "action=fit" for text in arguments):
        return list(arguments)
    return [text for text in arguments if _root(text) in (*_MACHINE, *_ONE_RUN)]


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
        if text in arguments or _root(text) not in (*_MACHINE, *_ONE_RUN):
            merged[text.partition("=")[0]] = text
    composition = compose_config(list(merged.values()))
    _refuse_changes(stored, composition, _ARCHITECTURE)
    return composition


def check_resume(stored: Any, composition: Composition) -> list[str]:
    """Compare the configuration of a run with that of the checkpoint it goes on from.

    Returns:
        One warning if training continues with other values, which are then in force.

    Raises:
        CheckpointError: If the checkpoint holds no configuration.
        ConfigError: If architecture, task or data differ, naming the key and both values.
    """
    _refuse_changes(stored, composition, ("task.", *_ARCHITECTURE))
    changes = [
        f"{key}={new} (was {old})"
        for key, old, new in _changes(stored, composition)
        if key.startswith(_TRAINING) or key == "size.dropout"
    ]
    if any(text.startswith("seed=") for text in changes):
        changes.append("the random state is the checkpoint's")
    return [f"resuming with {', '.join(changes)}"] if changes else []


def _root(argument: str) -> str:
    return argument.partition("=")[0].split(".")[0].split("/")[0]


def _refuse_changes(stored: Any, composition: Composition, sections: tuple[str, ...]) -> None:
    choices, _, _ = _record(stored)
    changes = [
        change
        for section in sections
        for change in _changes(stored, composition)
        if change[0].startswith(section) and change[0] not in _FREE
        # What network.* repeats of model.*, from a class that may have moved, or asks for no more.
        if not change[0].startswith("network.")
        or not (change[0].endswith("_target_") or change[2] is None)
    ]
    # Dropout has no weights; attention and memory repeat what their interpolations point to.
    changes = [
        c
        for c in changes
        if not c[0].endswith("dropout") and not {"attention", "memory"} & {*c[0].split(".")}
    ]
    if not changes:
        return
    key, old, new = changes[0]
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
    nothing; weights that do not fit are found when they are loaded.
    """
    old, new = dict(leaves(_record(stored)[2])), dict(leaves(composition.config))
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
