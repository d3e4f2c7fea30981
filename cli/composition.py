"""From a command line to a checked configuration, in a fraction of a second and without torch.

Hydra's compose API reads the YAML files; keys and values are checked here, so that every mistake is
one line that names the choices.
"""

import re
from collections.abc import Container, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from cli.checks import check_section
from cli.folders import folders, groups
from cli.kinds import Kind
from cli.overrides import actions, chooses_option, parse, set_value
from cli.rows import with_row
from cli.schema import Config, filled_sections, kinds_of
from cli.together import check_together
from fwlight.errors import ConfigError


@dataclass(frozen=True)
class Composition:
    """A checked configuration and what it was made of."""

    config: dict[str, Any]
    """Plain containers, interpolations resolved."""
    choices: dict[str, str]
    """The option chosen in each group."""
    overrides: list[str]
    """The key=value arguments that choose no option, as typed."""
    asked: frozenset[str]
    """The keys and groups of all arguments."""
    warnings: list[str]

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in plain containers; see `cli.stored`."""
        return {"choices": self.choices, "overrides": self.overrides, "config": self.config}

    def yaml(self) -> str:
        """Return the configuration as YAML."""
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    def hyperparameters(self) -> dict[str, str | int | float | bool]:
        """Return what tells runs apart: the options, and the plain values of the main groups."""
        chosen: dict[str, Any] = dict(self.choices)
        sections = {name: self.config[name] for name in ("model", "size", "optimizer", "task")}
        sections["model.feature_map"] = self.config["model"].get("feature_map", {})
        for name, section in sections.items():
            for key, value in section.items():
                if isinstance(value, str | int | float | bool) and not key.startswith("_"):
                    chosen[f"{name}.{key}"] = value
        chosen["trainer.max_steps"] = self.config["trainer"]["max_steps"]
        return {**chosen, "seed": self.config["seed"]}


def compose_config(arguments: Sequence[str]) -> Composition:
    """Compose conf/ with the `key=value` arguments and check the result.

    Raises:
        ConfigError: If an argument cannot be read, or a key, option or value is not allowed.
    """
    arguments = with_row(arguments)
    parsed = {key: (argument, value) for argument in arguments for key, value in [parse(argument)]}
    chosen = {k: pair for k, pair in parsed.items() if chooses_option(k) and k != "action"}
    nodes, choices = _compose_groups(chosen)
    for name in filled_sections(groups()):
        if not isinstance(nodes.get(name), DictConfig):
            files = ", ".join(map("{0[0]}={0[1]}".format, choices.items()))
            raise ConfigError(
                f"{name} is no section of keys in the chosen files of conf/ ({files})"
            )
    for name in actions():
        if not isinstance(nodes.get(name), DictConfig):
            raise ConfigError(
                f"conf/action/{name}.yaml fills no section {name}: let it begin with "
                f"`# @package {name}`"
            )
    # Nothing in a text as typed can be taken for an interpolation: a mark stands for it meanwhile.
    typed = {key: value for key, (_, value) in parsed.items() if Kind.TEXT in kinds_of(key)}
    texts = {f"\0{key}": value for key, value in typed.items() if value is not None}
    for key, (_, value) in parsed.items():
        if key not in chosen:
            set_value(nodes, choices, key, f"\0{key}" if f"\0{key}" in texts else value)
    warnings = _adapt(nodes, parsed)
    try:
        config: Any = OmegaConf.to_container(nodes, resolve=True)
    except InterpolationKeyError as error:
        missing = str(error.msg).split("'")[1] if "'" in str(error.msg) else ""
        group, _, key = missing.partition(".")
        if group not in choices:
            raise ConfigError(_first_line(error)) from error
        raise ConfigError(
            f"{group}={choices[group]} has no {key}, which {error.full_key} needs"
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    config = _filled(config, texts)
    own = {*actions(), *groups()} - Config.__annotations__.keys()
    check_section({key: value for key, value in config.items() if key not in own}, Config)
    check_together(config)
    overrides = [argument for key, (argument, _) in parsed.items() if key not in chosen]
    warnings += _warnings(config, choices)
    return Composition(config, choices, overrides, frozenset(parsed), warnings)


def _filled(node: Any, texts: dict[str, str]) -> Any:
    """Put texts where their marks are."""
    if isinstance(node, dict):
        return {key: _filled(value, texts) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, texts) for value in node]
    return texts.get(node, node) if isinstance(node, str) else node


def _compose_groups(chosen: dict[str, tuple[str, Any]]) -> tuple[DictConfig, dict[str, str]]:
    """Let Hydra put together the chosen options."""
    try:
        texts = (f"action=[{','.join(actions())}]", *(text for text, _ in chosen.values()))
        config, choices = _load(folders(), texts)
    except ConfigCompositionException as error:
        found = re.search("Could not override '([^']+)'", str(error))
        absent = found[1] if found else ""
        if absent in chosen and not (folders()[0] / absent.partition("@")[0]).is_dir():
            # A group of one's own, which no option in force has among its defaults, is added.
            text, value = chosen[absent]
            return _compose_groups({**chosen, absent: (f"+{text}", value)})
        inner = [key for key in chosen if "/" in key or "@" in key or key == "network"]
        if not inner or "Could not override" not in str(error):
            raise ConfigError(_first_line(error)) from error
        _, choices = _compose_groups({k: v for k, v in chosen.items() if k not in inner})
        key = next(key for key in inner if key not in choices)
        if "@" in key:
            where = f"task={choices['task']}"
            part = key.partition("@")[2]
            raise ConfigError(
                f"{key}={chosen[key][1]}: {where} has no such part as {part}"
            ) from error
        if "/" not in key:
            raise ConfigError(
                f"{key}={chosen[key][1]}: task={choices['task']} has one {key}, and no choice of it"
            ) from error
        outer, part = key.rsplit("/", 1)
        raise ConfigError(
            f"{key}={chosen[key][1]}: {outer}={choices[outer]} has no {part.replace('_', ' ')}"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error
    except RecursionError as error:
        raise ConfigError("a file of conf/ has itself among its defaults") from error
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"a file of conf/ cannot be read: {error}") from error
    return deepcopy(config), dict(choices)


@cache  # the points of a sweep choose among few combinations
def _load(
    searched: tuple[Path, ...], arguments: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    conf, *own = (str(folder) for folder in searched)
    places = ", ".join("'" + path.replace("'", "\\'") + "'" for path in own)
    with initialize_config_dir(conf, version_base="1.3"):
        texts = [*([f"hydra.searchpath=[{places}]"] if own else []), *arguments]
        config = compose("config", overrides=texts, return_hydra_config=True)
    runtime = config.hydra.runtime.choices.items()
    choices = {
        group: option
        for group, option in runtime
        if option is not None and not option.startswith("_") and group != "action"
        if not group.startswith("hydra/")
    }
    with open_dict(config):
        del config["hydra"]
        config.pop("rows", None)
    return config, choices


def _adapt(nodes: DictConfig, given: Container[str]) -> list[str]:
    """Change defaults that contradict what was asked for, and say so."""
    changes = []
    optimizer, steps = nodes.optimizer, nodes.trainer.max_steps
    if (
        "optimizer.warmup_steps" not in given
        and isinstance(steps, int)
        and 0 < steps < (optimizer.get("warmup_steps") or 0)
    ):
        changes.append(
            f"optimizer.warmup_steps={optimizer.warmup_steps} is longer than "
            f"trainer.max_steps={steps}: shortened to {steps // 10}"
        )
        optimizer.warmup_steps = steps // 10
    if "trainer.max_epochs" in given and "trainer.max_steps" not in given:
        changes.append(
            f"trainer.max_steps={steps} ends the training too, if it comes before "
            f"trainer.max_epochs={nodes.trainer.max_epochs}; optimizer.schedule ends there"
        )
    reversed_positions = nodes.model.get("positions") == "sinusoidal_reversed"
    if reversed_positions and nodes.callbacks.get("text_samples") is not None:
        changes.append(
            "callbacks.text_samples is off: with model.positions=sinusoidal_reversed every new "
            "token shifts all others"
        )
        nodes.callbacks.text_samples = None
    return changes


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _warnings(values: dict[str, Any], choices: dict[str, str]) -> list[str]:
    start, steps = values["optimizer"].get("average_from"), values["trainer"]["max_steps"]
    late = isinstance(start, int) and 0 < steps <= start
    return [
        f"task={choices['task']} has no place for model.{key}, which does nothing"
        for key in values["network"].get("_without_", ())
        if values["model"].get(key)
    ] + [
        f"optimizer.average_from={start} is no update before trainer.max_steps={steps}: no average"
    ] * late
