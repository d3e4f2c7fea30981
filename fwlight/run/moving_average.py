"""The moving average of the weights, which is evaluated in their place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fwlight.integrity import damaged
from fwlight.lightning_internals import completes_update
from fwlight.training.module import TrainingModule


class MovingAverage(Callback):
    """Averages the weights where `optimizer.ema_decay` asks for it, and has the average evaluated.

    After update n it is a_n = d a_{n-1} + (1 - d) w_n with d = min(ema_decay, (1 + n) / (10 + n)),
    from a_0 = w_0, so that a short training forgets its first weights too.

    In a validation weights and average change places; training goes on with the weights. A
    checkpoint holds both, the weights as `state_dict`; see `averaged`.

    Lightning's EMAWeightAveraging would not do: it averages buffers too, seeds and counters of
    random features among them, and puts the average in the place of the weights before the last
    checkpoint is written, from which training could then not go on exactly.
    """

    def __init__(self) -> None:
        self.decay: float | None = None
        """None: there is no average."""
        self._average: dict[nn.Parameter, Tensor] = {}
        self._restored: Mapping[str, Tensor] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the stored average until training starts."""
        self._restored = checkpoint.get("average")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the stored average, or begin with the weights.

        Raises:
            CheckpointError: It is of other weights, or not finite.
        """
        restored, self._restored = self._restored, None
        self.decay = cast(TrainingModule, pl_module).optimizer_config.ema_decay
        self._average = {}
        for name, weight in pl_module.named_parameters() if self.decay is not None else ():
            value = weight.detach() if restored is None else restored.get(name)
            if value is None or value.shape != weight.shape or not value.isfinite().all():
                error = ValueError(f"its average has no {name} such as the network's")
                raise damaged(Path(trainer.ckpt_path or ""), error)
            self._average[weight] = value.to(weight, copy=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the weights of an update in."""
        if self.decay is not None and completes_update(trainer):
            n = trainer.global_step
            decay = min(self.decay, (1 + n) / (10 + n))
            for weight, average in self._average.items():
                average.lerp_(weight.detach(), 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._exchange()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._exchange()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average under every name that a weight has."""
        named = pl_module.named_parameters(remove_duplicate=False)
        if self.decay is not None:
            checkpoint["average"] = {name: self._average[weight] for name, weight in named}

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in self._average.items():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def averaged(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with its average as weights, itself if it has none: what is tested."""
    weights = {**checkpoint["state_dict"], **checkpoint.get("average", {})}
    return {**checkpoint, "state_dict": weights}
