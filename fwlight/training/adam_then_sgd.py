"""Adam until the mean of the weights is taken, plain gradient descent from there on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Adam


class AdamThenSGD(Adam):
    """Adam, then w <- w - sgd_lr g, where the weights are averaged: averaged SGD.

    The average itself is `optimizer.average_from`'s (Polyak and Juditsky 1992; torch's ASGD without
    its decay, lambd = 0, from t0 on). So Schlag et al. 2021a train language models. Weight decay
    is added to the gradient of both, as in torch's Adam. Adam's moments stay as they are.

    Args:
        groups: Dictionaries of parameters and options.
        lr: Rate of groups without one.
        sgd_lr: Rate of gradient descent, of all groups.
        betas: Adam's.
        eps: Adam's.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        sgd_lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not sgd_lr > 0:
            raise ValueError(f"sgd_lr={sgd_lr} must be above 0")
        first, second = map(float, betas)
        super().__init__(groups, lr=lr, betas=(first, second), eps=eps)
        for group in self.param_groups:
            group.update(averages=False, averaging_lr=sgd_lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all groups; return what the closure did, which is called first."""
        if not any(group["averages"] for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    decayed = parameter.grad.add(parameter, alpha=group["weight_decay"])
                    parameter.sub_(decayed, alpha=group["lr"])
        return loss
