"""The capacity of a network's layers by their norms: watched, made dear, or bounded."""

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fwlight.diagnostics.lpq import (
    check_exponents,
    layer_matrix,
    layer_norms,
    layers_of,
    project_lpq,
)
from fwlight.lightning_internals import completes_update
from fwlight.sharding import laid_out_as, share
from fwlight.training.module import TrainingModule

MODES = ("log", "penalty", "project")


class LpqNorm(Callback):
    """Logs `norm_lpq/<layer>`, |V|_{p,q} of every linear and convolutional layer, bias included.

    See `fwlight.diagnostics.lpq`. Unlike other callbacks it may change a training:

    - penalty: `weight` times the sum of all norms is minimised beside the loss; the logged loss is
      without it, the logged gradient with it.
    - project: after every update each layer is put back into the ball of `bound`; see
      `project_lpq`. The first weights are left as they are.

    The bounds of Xu and Wang are for networks of linear layers and ReLU. Of a transformer the norms
    are what they are, and bound nothing.

    Args:
        mode: "log", "penalty" or "project".
        p: Exponent over what an output reads, at least 1; may be infinite.
        q: Exponent over outputs, likewise.
        weight: Of the penalty.
        bound: Of every layer's norm.

    Raises:
        ValueError: If an option is unknown or a number out of range.
    """

    def __init__(
        self,
        *,
        mode: str = "log",
        p: float = 1.0,
        q: float = float("inf"),
        weight: float = 1e-4,
        bound: float = 10.0,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode} is none of {', '.join(MODES)}")
        check_exponents(p=p, q=q)
        for name, value in (("weight", weight), ("bound", bound)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value:g} must be above 0 and finite")
        self.mode, self.p, self.q, self.weight, self.bound = mode, p, q, weight, bound
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the optimiser's updates, whoever makes them and however many batches they have."""
        network = cast(TrainingModule, pl_module).network
        if self.mode == "project":
            self._hook = trainer.optimizers[0].register_step_post_hook(
                lambda *_: self._project(network)
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the penalty's gradient; every process has the same."""
        module = cast(TrainingModule, pl_module)
        if self.mode != "penalty":
            return
        layers = layers_of(module.network)
        with torch.enable_grad():
            total = torch.stack(list(self._norms(module.network).values())).sum()
        weights = [x for layer in layers.values() for x in layer.parameters() if x.requires_grad]
        # The module multiplies the gradient of several batches by this.
        scale = self.weight / module.gradient_scale()
        for weight, gradient in zip(weights, torch.autograd.grad(total, weights), strict=True):
            if weight.grad is not None:  # else it is not updated
                mine = share(gradient)
                share(weight.grad).add_(mine * scale.to(mine))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log where training metrics are."""
        module = cast(TrainingModule, pl_module)
        if completes_update(trainer) and module.logs_at(trainer.global_step):
            with torch.no_grad():
                norms = self._norms(module.network)
            values = torch.stack(list(norms.values())).tolist() if norms else []
            tagged = {f"norm_lpq/{x}": y for x, y in zip(norms, values, strict=True)}
            module.record(tagged, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimiser go."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _norms(self, network: nn.Module) -> dict[str, Tensor]:
        return layer_norms(network, p=self.p, q=self.q)

    @torch.no_grad()
    def _project(self, network: nn.Module) -> None:
        for layer in layers_of(network).values():
            # In float64, so that the norm of what is rounded is the bound to 1e-7.
            V = project_lpq(layer_matrix(layer).double(), p=self.p, q=self.q, bound=self.bound)
            weights = V if layer.bias is None else V[:-1]
            weights = weights.T.reshape(layer.weight.shape)
            layer.weight.copy_(laid_out_as(weights, layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(laid_out_as(V[-1], layer.bias))
