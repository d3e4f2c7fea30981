"""From configuration to objects; the one place that imports what a `_target_` names."""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cli.folders import imported
from cli.launch import first_process
from cli.room import build_in_memory
from fwlight.compiling import compile_network
from fwlight.errors import CheckpointError, ConfigError, FwlightError, one_line
from fwlight.integrity import taking_from
from fwlight.models import recompute_blocks


def build(name: str, node: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call what the node's `_target_` names, with the node's keys and the further arguments.

    As Hydra's instantiate, but for plain containers: text in them is never an interpolation.

    Raises:
        ConfigError: If it does not accept its values.
    """
    try:
        return bound(node)(*args, **kwargs)
    except FwlightError:
        raise
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error


def bound(node: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what the node's `_target_` names with the node's keys, not called yet."""
    return _made({**node, "_partial_": True})


def build_parts(
    config: Mapping[str, Any], *, checkpoint: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Seed, then build the module and its data, which is read for a training.

    A checkpoint brings the data's vocabulary; what is read for it is the action's to say.
    """
    lightning.seed_everything(config["seed"], verbose=False)
    data = build("task", config["task"])
    if checkpoint is not None:
        state = checkpoint.get(type(data).__qualname__)
        if state is None:
            raise CheckpointError("the checkpoint holds nothing of its data: no fit wrote it")
        with taking_from(config["ckpt"]):
            data.load_state_dict(state)
    else:
        data.setup("fit")
    with warnings.catch_warnings(record=True) as caught:
        network = build_in_memory(
            config, lambda: build("network", config["network"], **data.network_sizes)
        )
    if first_process():
        for text in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"warning: {one_line(text)}", file=sys.stderr)
    if config["model"].get("recompute"):
        try:
            recompute_blocks(network)
        except ValueError as error:
            raise ConfigError(f"model.recompute=true: {error}") from error
    module = build("module", config["module"], network)
    if config["trainer"]["precision"] == "64-true":
        module.double()  # before a checkpoint is loaded, whose weights would be rounded else
    if config["compile"]:
        compile_network(module.network)
    return module, data


def build_callbacks(config: Mapping[str, Any]) -> list[Any]:
    """Build the callbacks that are not switched off by null."""
    return [
        build(f"callbacks.{name}", node)
        for name, node in config["callbacks"].items()
        if name != "checkpoint" and node is not None
    ]


def logger_makers(config: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Return what builds the loggers that are not switched off by null, by name.

    Each takes keywords, of which the logger gets those that it has parameters for, unless its file
    gives them another value.
    """
    return {
        name: partial(_build_logger, name, node)
        for name, node in config["logger"].items()
        if node is not None
    }


def _build_logger(name: str, node: Mapping[str, Any], /, **offered: Any) -> Any:
    wanted = inspect.signature(imported(node["_target_"])).parameters
    given = {key: value for key, value in offered.items() if key in wanted and key not in node}
    return build(f"logger.{name}", node, **given)


def _made(node: Any) -> Any:
    """Return a value as it is, and instead of a node with `_target_` its object or factory.

    A node without anything, as model/decay=none is, means None.
    """
    if isinstance(node, list):
        return [_made(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if not node:
        return None
    arguments = {
        key: _made(value)
        for key, value in node.items()
        if key not in ("_target_", "_partial_", "_check_", "_without_")
    }
    if "_target_" not in node:
        return arguments
    factory = partial(imported(node["_target_"]), **arguments)
    return factory if node.get("_partial_") else factory()
