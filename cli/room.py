"""A network that the machine's memory does not hold is refused while it is built, before it fills.

Where memory ends the system kills a process without a word, often after minutes.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from cli.kinds import Kind
from cli.schema import kinds_of
from cli.stored import leaves
from fwlight.errors import ConfigError

_LOADED, _TRAINED = 2, 4
"""Copies of a weight: with a checkpoint's; with its gradient and Adam's two moments."""
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of this process's group, in versions 2 and 1 of Linux's control groups."""


def build_in_memory(config: Mapping[str, Any], make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `make` builds, if it can be saved and, on a CPU, trained.

    Every weight is counted when its module gets it, which is before it is written to.

    Raises:
        ConfigError: The machine has not so much memory.
    """
    room = memory()
    if room is None:
        return make()
    parameters = needed = 0
    counted: dict[int, Tensor] = {}  # by identity: shared weights are registered more than once

    def count(_: nn.Module, __: str, value: Tensor | None) -> None:
        nonlocal parameters, needed
        if value is not None and id(value) not in counted:
            counted[id(value)] = value
            parameters += isinstance(value, nn.Parameter) * value.numel()
            needed += _LOADED * value.nbytes
            _check(parameters, needed, room, config)

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        network = make()
    finally:
        for hook in hooks:
            hook.remove()
    if config["action"] == "fit" and config["trainer"]["accelerator"] == "cpu":
        weights = [p for p in network.parameters() if p.requires_grad]
        averages = ("ema_decay", "average_from")
        copies = _TRAINED + any(config["optimizer"].get(name) for name in averages)
        trainer = config["trainer"]
        # Sharded processes hold one copy together, those of a machine its share of it.
        nodes = trainer["num_nodes"] if trainer["strategy"] == "fsdp" else 1
        trained = copies * sum(p.nbytes for p in weights) // nodes
        _check(sum(p.numel() for p in weights), trained, room, config)
    return network


def memory() -> int | None:
    """Return the bytes that this process may use, None where the system does not tell."""
    try:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            room = min(room, int(Path("/sys/fs/cgroup", name).read_text()))
    return room


def _check(parameters: int, needed: int, room: int, config: Mapping[str, Any]) -> None:
    if needed <= room:
        return
    sizes = {
        key: value
        for key, value in leaves(config)
        if Kind.ARCHITECTURE in kinds_of(key) and type(value) is int
        if Kind.DERIVED not in kinds_of(key)
    }
    key, size = max(sizes.items(), key=lambda item: item[1])
    raise ConfigError(
        f"the network has {parameters:,} parameters or more, which with what goes with them take "
        f"over {needed / 2**30:,.1f} GiB; this machine has {room / 2**30:,.1f} GiB: make "
        f"{key}={size} smaller"
    )
