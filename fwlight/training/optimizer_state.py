"""What an optimiser takes from a checkpoint: its state, if that is such as it would make itself.

Fused kernels trust the shapes of their state, and a state without moments trains like a new run:
neither is left to them to find out.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from fwlight.integrity import damaged
from fwlight.sharding import is_sharded


def hold_optimizer(
    module: nn.Module, trainer: Trainer, checkpoint: dict[str, Any], *, scheduled: bool
) -> None:
    """Put into a checkpoint, in place of its optimiser's state, what may be loaded.

    That is the stored state with the options of the trainer's own optimiser; of its options the
    rates alone are the checkpoint's, where a schedule gives each update its own.

    Args:
        module: Whose parameters.
        trainer: With its optimiser as configured, not stepped yet.
        checkpoint: What is restored next.
        scheduled: Whether the module sets the rates; schedulers of the trainer set them too.

    Raises:
        CheckpointError: It is not the state of this optimiser.
    """
    schedulers = trainer.lr_scheduler_configs
    try:
        (stored,) = checkpoint["optimizer_states"]
        groups = trainer.optimizers[0].state_dict()["param_groups"]
        now = _numbers(stored["param_groups"], groups, earlier=_earlier_order(module))
        state = {now[number]: values for number, values in stored["state"].items()}
        held = {**stored, "state": state, "param_groups": groups}
        rates = {now[n]: float(old["lr"]) for old in stored["param_groups"] for n in old["params"]}
        for group in groups if scheduled or schedulers else ():
            group["lr"] = rates[group["params"][0]]
        for config, old in zip(schedulers, checkpoint["lr_schedulers"], strict=True):
            if config.scheduler.state_dict().keys() != old.keys():
                raise ValueError("its lr_schedulers are others")
        weights = checkpoint["state_dict"]
        dtypes: dict[Tensor, torch.dtype] = {
            p: weights[name].dtype for name, p in module.named_parameters()
        }
        if (fresh := _after_a_step(trainer.optimizers[0], dtypes)) is not None:
            without = [now[number] for number in _without(checkpoint)]
            held["state"] = _held_states(state, fresh, without=without)
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(Path(trainer.ckpt_path or ""), error) from error
    checkpoint["optimizer_states"] = [held]


def _numbers(
    stored: list[dict[str, Any]], groups: list[dict[str, Any]], *, earlier: list[str]
) -> dict[Any, int]:
    """Return the number that each stored parameter has in the groups of now.

    Args:
        stored: Groups of a checkpoint.
        groups: Those of now.
        earlier: Names by number where the checkpoint has none, as of version 0.1.

    Raises:
        ValueError: They are of other parameters.
    """
    numbers = [number for group in stored for number in group["params"]]
    if not all("param_names" in group for group in groups):  # an optimiser of a subclass
        if [group["params"] for group in stored] != [group["params"] for group in groups]:
            raise ValueError("its optimizer has other parameters")
        return {number: number for number in numbers}
    if all("param_names" in group for group in stored):
        earlier = [name for group in stored for name in group["param_names"]]
    names = [name for group in groups for name in group["param_names"]]
    if numbers != list(range(len(names))) or sorted(earlier) != sorted(names):
        raise ValueError("its optimizer has other parameters")
    now = {name: number for number, name in enumerate(names)}
    return {number: now[name] for number, name in enumerate(earlier)}


def _earlier_order(module: nn.Module) -> list[str]:
    """Return the names of parameters in the order of version 0.1: matrices, then vectors."""
    named = [(name, p.ndim < 2) for name, p in module.named_parameters() if p.requires_grad]
    return [name for name, _ in sorted(named, key=lambda pair: pair[1])]


def parameters_without_state(stored: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the parameters that an optimiser's `state_dict` has nothing of."""
    numbers = (number for group in stored["param_groups"] for number in group["params"])
    return [number for number in numbers if number not in stored["state"]]


def _without(checkpoint: dict[str, Any]) -> list[int]:
    """Numbers of the parameters that have no state, as there never was a gradient of them."""
    (stored,) = checkpoint["optimizer_states"]
    # Of all of them at once only before the first update; a scaler skips some without counting.
    made = checkpoint["global_step"] - checkpoint.get("skipped_updates", 0)
    if not stored["state"] and made and "MixedPrecision" not in checkpoint:
        return []
    # Earlier versions do not list them.
    return checkpoint.get("without_state", [parameters_without_state(stored)])[0]


def _after_a_step(
    optimizer: Optimizer, dtypes: Mapping[Tensor, torch.dtype]
) -> dict[int, dict[str, Any]] | None:
    """The state after a step with gradients of 0, without values; None if it needs values."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    made = [x for state in optimizer.state.values() for x in state.values()]
    # A deep copy in which every tensor but the counters is one without memory.
    instead: dict[int, Any] = {
        id(x): _without_memory(x, dtypes.get(x, x.dtype))
        for x in (*parameters, *(x for x in made if isinstance(x, Tensor) and x.ndim))
    }
    twin = copy.deepcopy(optimizer, instead)
    for group in twin.param_groups:
        group.update({k: False for k in ("fused", "foreach", "capturable") if group.get(k)})
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        twin.step()
    except (RuntimeError, TypeError):  # of a kind that looks at its gradients
        return None
    return twin.state_dict()["state"]


def _without_memory(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor laid out alike that has no values, whole where there are shares of it."""
    if is_sharded(x):
        return torch.empty(x.shape, device="meta", dtype=dtype)
    return torch.empty_like(x, device="meta", dtype=dtype)


def _held_states(
    state: dict[int, dict[str, Any]], fresh: dict[int, dict[str, Any]], *, without: list[int]
) -> dict[int, dict[str, Any]]:
    """Return the state of all parameters.

    Raises:
        ValueError: Parameters, names, shapes or types are not the fresh ones, or a value is one
            that no training leaves.
    """
    if other := (fresh.keys() - set(without)) ^ state.keys():
        raise ValueError(f"its optimizer state is not that of its parameters (first {min(other)})")
    for number, values in state.items():
        if values.keys() != fresh[number].keys():
            raise ValueError(f"its optimizer state {number} holds {', '.join(values) or 'nothing'}")
    return {
        number: {name: _held(x, fresh[number][name], f"{number}.{name}") for name, x in v.items()}
        for number, v in state.items()
    }


def _held(value: Any, fresh: Any, where: str) -> Any:
    """Return a value that is of its kind, laid out as a fresh one and with memory of its own."""
    if not isinstance(fresh, Tensor):
        if type(value) is not type(fresh):
            raise ValueError(f"its optimizer state {where} is not of its kind")
        return value
    counter = fresh.ndim == 0 and fresh.is_floating_point()
    if not isinstance(value, Tensor) or value.shape != fresh.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else "no tensor"
        raise ValueError(f"its optimizer state {where} is {shape}, not {tuple(fresh.shape)}")
    if value.dtype != fresh.dtype and not (counter and value.is_floating_point()):
        raise ValueError(f"its optimizer state {where} is {value.dtype}, not {fresh.dtype}")
    if (where.endswith((".step", "_sq")) and (value < 0).any()) or not value.isfinite().all():
        raise ValueError(f"its optimizer state {where} holds what no training leaves")
    return torch.empty_like(fresh, device="cpu", dtype=value.dtype).copy_(value)
