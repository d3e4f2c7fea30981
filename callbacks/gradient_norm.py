"""Where in the network the gradient is."""

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from fwlight.sharding import whole
from fwlight.training.module import TrainingModule


class GradientNorm(Callback):
    """Logs `gradient_norm/<group>` wherever training metrics are logged, before clipping.

    A group is a block (`blocks.0`) or another direct part of the network (`embedding`).
    """

    def __init__(self) -> None:
        self._norms: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure what the update will use."""
        module = cast(TrainingModule, pl_module)
        if not module.logs_at(trainer.global_step + 1):
            return
        groups: dict[str, list[torch.Tensor]] = {}
        for name, parameter in module.network.named_parameters():
            if parameter.grad is not None:
                groups.setdefault(_group(name), []).append(parameter.grad)
        scale = module.gradient_scale()
        self._norms = {
            group: whole(torch.nn.utils.get_total_norm(gradients)) * scale
            for group, gradients in groups.items()
        }

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log it."""
        if self._norms:
            norms, self._norms = self._norms, {}
            values = torch.stack(list(norms.values())).tolist()
            tagged = {f"gradient_norm/{x}": y for x, y in zip(norms, values, strict=True)}
            cast(TrainingModule, pl_module).record(tagged, trainer.global_step)


def _group(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdecimal() else parts[0]
