"""What updates parameters, and the learning rate as a function of the update's number."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from fwlight.errors import ConfigError
from fwlight.training.groups import KINDS, parameters_by_kind

SCHEDULES = ("cosine", "cosine_reference", "linear", "wsd", "inverse_sqrt", "constant")
ENDLESS = ("inverse_sqrt", "constant")
"""Those that know no last update."""


NO_DECAY = {kind: {"weight_decay": 0.0} for kind in ("vectors", "gates")}
"""What groups have of their own where nothing else is said."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    The learning rate is computed anew for every update from this record, and a resumed run takes
    the other values from it too: what is configured is what is in force.
    """

    lr: float = 1e-3
    """Peak learning rate."""
    betas: Sequence[float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.0
    """Decay, decoupled in AdamW; by default vectors such as biases and gains have none."""
    warmup_steps: int = 0
    """Updates until the peak is reached."""
    schedule: str = "cosine"
    """What follows the warm-up: "cosine" to 0 at `max_steps`, "cosine_reference", the same as the
    reference code of Schlag et al. (2021b) has it, "linear" to 0 there, "wsd", the peak and a
    linear fall to 0 over the last updates alone (warm-up, stable, decay: Hu et al. 2024,
    arXiv 2404.06395), "inverse_sqrt", the peak times sqrt(warmup_steps / n) (Vaswani et al. 2017,
    sec. 5.3), or "constant", the peak for ever."""
    decay_steps: int | None = None
    """Updates of the fall of "wsd"; None: a fifth of all, or what the warm-up leaves."""
    ema_decay: float | None = None
    """Of a moving average of the weights, which is evaluated and tested instead; None: of none."""
    average_from: int | str | None = None
    """Or the plain mean of the weights after later updates than this one; "stalled": after those
    since validation no longer got better; None: none."""
    average_patience: int = 5
    """So many evaluations: it no longer gets better where the loss of one is above the lowest of
    those that are more than so many before it (NT-ASGD: Merity et al. 2018, algorithm 1)."""
    algorithm: Callable[..., Optimizer] | None = None
    """Makes the optimiser from groups of named parameters and the keyword lr; None: AdamW."""
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that a kind of parameters (`parameters_by_kind`) has of its own, in place of those in
    `NO_DECAY`; None: that of all. The schedule multiplies every rate."""
    max_skipped_updates: int = 0
    """So many updates of a run may be left out, and counted, because loss or gradient are not
    finite; the next one ends it."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        own = {
            kind: {name: value for name, value in options.items() if value is not None}
            for kind, options in {**NO_DECAY, **self.groups}.items()
        }
        object.__setattr__(self, "groups", {kind: own[kind] for kind in own if own[kind]})
        if unknown := self.groups.keys() - set(KINDS):
            raise ValueError(f"optimizer.groups.{min(unknown)}: choose of {', '.join(KINDS)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")
        if not (self.lr > 0 and self.eps > 0 and math.isfinite(self.lr)):
            raise ValueError(f"optimizer.lr={self.lr} and eps={self.eps} must be above 0")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"optimizer.weight_decay={self.weight_decay} and "
                f"warmup_steps={self.warmup_steps} must not be negative"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"optimizer.schedule={self.schedule!r}: choose one of {', '.join(SCHEDULES)}"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"optimizer.decay_steps={self.decay_steps} must be at least 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay={self.ema_decay} must be between 0 and 1")
        start = self.average_from
        if start not in (None, "stalled") and not (type(start) is int and start >= 0):
            raise ValueError(f"optimizer.average_from={start}: a whole number or stalled")
        if self.average_patience < 1:
            raise ValueError(f"optimizer.average_patience={self.average_patience}: at least 1")
        if self.average_from is not None and self.ema_decay is not None:
            raise ValueError("optimizer.ema_decay and average_from are two averages; choose one")

    def check_horizon(self, max_steps: int) -> None:
        """Hold the schedule to the number of updates of a training.

        Raises:
            ValueError: It ends with a training that has no end, or is longer than it.
        """
        if self.schedule in ENDLESS:
            return
        if max_steps < 1:
            raise ValueError(
                f"optimizer.schedule={self.schedule} ends at trainer.max_steps, which is "
                f"{max_steps}: set it, or optimizer.schedule=constant"
            )
        if self.warmup_steps > max_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} is longer than "
                f"trainer.max_steps={max_steps}"
            )
        if self.schedule == "wsd" and self.warmup_steps + (self.decay_steps or 0) > max_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} "
                f"together are longer than trainer.max_steps={max_steps}"
            )


def warmup_cosine(n: int, *, warmup_steps: int, max_steps: int) -> float:
    """Factor on the peak learning rate at update `n`: linear warm-up, then a cosine to 0.

    `n / warmup_steps` up to and including `n = warmup_steps`, then
    `(1 + cos(pi n / max_steps)) / 2`. The cosine is taken at n itself, without subtracting
    the warm-up, as in the reference code of Schlag et al. (2021b).

    Args:
        n: Number of the update, from 1.
        warmup_steps: Length of the warm-up; 0 for none.
        max_steps: Where the cosine reaches 0; it stays there.
    """
    if n <= warmup_steps:
        return n / warmup_steps
    return _cosine(n, max_steps)


def reference_warmup_cosine(n: int, *, warmup_steps: int, max_steps: int) -> float:
    """`warmup_cosine` as in the reference code of Schlag et al. (2021b), train.py.

    1 at `n = 1`, `(n - 1) / warmup_steps` up to and including `n = warmup_steps`, then the cosine
    at `n - 1`: that code sets the rate after an update, for the next, so the first one has the peak
    and every other the rate of its predecessor's number. Arguments as in `warmup_cosine`.
    """
    if 1 < n <= warmup_steps:
        return (n - 1) / warmup_steps
    return _cosine(n - 1, max_steps)


def _cosine(n: int, max_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(n, max_steps) / max_steps))


def trapezoid(n: int, *, warmup_steps: int, decay_steps: int, max_steps: int) -> float:
    """Factor on the peak learning rate at update `n`: linear warm-up, 1, linear to 0.

    `n / warmup_steps` up to `n = warmup_steps`, then 1, and `(max_steps - n) / decay_steps` over
    the last `decay_steps` updates. Other arguments as in `warmup_cosine`.
    """
    if n <= warmup_steps:
        return n / warmup_steps
    return min(1.0, max(0, max_steps - n) / max(1, decay_steps))


def lr_factor(config: OptimizerConfig, n: int, *, max_steps: int) -> float:
    """Fraction of the peak learning rate that update `n` (from 1) uses."""
    if config.schedule == "inverse_sqrt":
        warmup = max(1, config.warmup_steps)
        return min(n / warmup, math.sqrt(warmup / n))
    if config.schedule == "constant":
        return min(1.0, n / config.warmup_steps) if config.warmup_steps else 1.0
    length = {"warmup_steps": config.warmup_steps, "max_steps": max_steps}
    if config.schedule in ("linear", "wsd"):
        decay_steps = after_warmup = max_steps - config.warmup_steps
        if config.schedule == "wsd":
            decay_steps = config.decay_steps or min(max_steps // 5, after_warmup)
        return trapezoid(n, decay_steps=decay_steps, **length)
    cosine = warmup_cosine if config.schedule == "cosine" else reference_warmup_cosine
    return cosine(n, **length)


def set_learning_rates(
    groups: Sequence[dict[str, Any]],
    config: OptimizerConfig,
    n: int,
    *,
    max_steps: int,
    scale: float = 1.0,
    averages: bool = False,
) -> dict[str, float]:
    """Give groups of parameters the rates of update `n`; return those that are logged.

    They are `lr`, that of `config`, and `lr_<kind>` of a kind that has its own.

    Args:
        groups: Each with its peak as `initial_lr`. One that goes on otherwise where the weights are
            averaged has `averages`, which is set, and that peak as `averaging_lr`.
        config: The schedule.
        n: Number of the update, from 1.
        max_steps: As in `warmup_cosine`.
        scale: Another factor on every rate.
        averages: Whether this update is one of those whose weights are averaged.
    """
    factor = lr_factor(config, n, max_steps=max_steps) * scale
    rates = {"lr": config.lr * factor}
    for group in groups:
        group["lr"] = group["initial_lr"] * factor
        if "averages" in group:
            group["averages"] = averages
            if averages:
                rates["lr"] = group["lr"] = group["averaging_lr"] * factor
                continue
        if group["initial_lr"] != config.lr and "name" in group:
            rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def build_optimizer(module: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> Optimizer:
    """Return what updates the trainable parameters, in a group for every kind of them.

    Without an `algorithm` it is AdamW, which is Adam itself where `weight_decay` is 0.

    Args:
        module: Whose parameters.
        config: The values.
        fused: Use AdamW's fused kernels where every parameter's device has them.

    Raises:
        ValueError: If no parameter is trainable.
        ConfigError: If the algorithm does not take its options, or groups have others.
    """
    groups = [
        {"name": kind, "lr": config.lr, "weight_decay": config.weight_decay}
        | dict(config.groups.get(kind, {}))
        | {"params": named}
        for kind, named in parameters_by_kind(module).items()
    ]
    parameters = [parameter for group in groups for _, parameter in group["params"]]
    if not parameters:
        raise ValueError("no parameter of the model is trainable")
    asked = {name for group in groups for name, value in group.items() if value}
    available = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    betas = (config.betas[0], config.betas[1])
    adam = partial(AdamW, betas=betas, eps=config.eps, fused=fused and available)
    make = config.algorithm or adam
    try:
        optimizer = make(groups, lr=config.lr)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.algorithm: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer.algorithm makes a {type(optimizer).__name__}, no Optimizer")
    if unknown := asked - {"name", "params"} - optimizer.defaults.keys():
        raise ConfigError(f"optimizer: {type(optimizer).__name__} takes no {min(unknown)}")
    return optimizer
