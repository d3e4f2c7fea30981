"""The average of the weights, which is evaluated in their place."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fwlight.errors import ConfigError
from fwlight.integrity import damaged
from fwlight.lightning_internals import completes_update
from fwlight.sharding import laid_out_as, share
from fwlight.training.module import TrainingModule

_WATCHED = "val/loss"


class MovingAverage(Callback):
    """Averages the weights where the optimizer's options ask for it, and has the average evaluated.

    With `ema_decay`, after update n it is a_n = d a_{n-1} + (1 - d) w_n with
    d = min(ema_decay, (1 + n) / (10 + n)), from a_0 = w_0, so that a short training forgets its
    first weights too.

    With `average_from` it is the plain mean of the weights since, a_n = (w_{m+1} + ... + w_n) /
    (n - m). m is the number that is given, or that of the first evaluation whose loss is above the
    lowest of those more than `average_patience` before it (NT-ASGD: Merity et al. 2018,
    arXiv 1708.02182, algorithm 1). Until then the weights themselves are evaluated.

    In a validation weights and average change places; training goes on with the weights. A
    checkpoint holds both, the weights as `state_dict`; see `averaged`.

    Lightning's EMAWeightAveraging would not do: it averages buffers too, seeds and counters of
    random features among them, and puts the average in the place of the weights before the last
    checkpoint is written, from which training could then not go on exactly.
    """

    def __init__(self) -> None:
        self._decay: float | None = None
        self._start: int | str | None = None
        self._patience = 0
        self._since: int | None = None
        self._losses: list[float] = []
        self._average: dict[nn.Parameter, Tensor] = {}
        self._restored: Mapping[str, Tensor] | None = None

    @property
    def averages(self) -> bool:
        """Whether there is an average by now."""
        return bool(self._average)

    def state_dict(self) -> dict[str, Any]:
        """Since when there is a plain mean, and the losses that it was waited with."""
        if self._since is None and not self._losses:
            return {}
        return {"since": self._since, "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._since, self._losses = state_dict["since"], list(state_dict["losses"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the stored average until training starts."""
        self._restored = checkpoint.get("average")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the stored average, or begin with the weights.

        Raises:
            CheckpointError: It is of other weights, or not finite.
            ConfigError: What is waited for is no metric of the task.
        """
        restored, self._restored = self._restored, None
        module = cast(TrainingModule, pl_module)
        config = module.optimizer_config
        self._decay, self._start = config.ema_decay, config.average_from
        self._patience = config.average_patience
        if self._start == "stalled" and _WATCHED not in module.monitored:
            raise ConfigError(
                f"optimizer.average_from=stalled waits for {_WATCHED}, which is no metric of this "
                "task; give the number of an update"
            )
        if self._start is None:
            self._since, self._losses = None, []
        module.average_since = self._since
        begins = restored is None and self._since is None
        self._average = {}
        if self._decay is None and self._since is None:
            return
        for name, weight in pl_module.named_parameters():
            self._average[weight] = weight.detach().clone()
            if begins:
                continue
            value = (restored or {}).get(name)
            if value is None or value.shape != weight.shape or not value.isfinite().all():
                error = ValueError(f"its average has no {name} such as the network's")
                raise damaged(Path(trainer.ckpt_path or ""), error)
            self._average[weight].copy_(laid_out_as(value.to(weight.device), weight))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin where it was said."""
        start = self._start
        if self._since is None and isinstance(start, int) and trainer.global_step >= start:
            self._begin(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the weights of an update in."""
        if not (self._average and completes_update(trainer)):
            return
        n = trainer.global_step
        if self._since is not None:
            part = 1 / (n - self._since)
        else:
            part = 1 - min(cast(float, self._decay), (1 + n) / (10 + n))
        for weight, average in self._average.items():
            share(average).lerp_(share(weight.detach()), part)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._exchange()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back; begin where validation gets no better."""
        self._exchange()
        loss = cast(TrainingModule, pl_module).latest.get(_WATCHED)
        if self._start != "stalled" or self._since is not None:
            return
        if loss is None or not math.isfinite(loss):  # which no later one would be above
            return
        if len(self._losses) > self._patience and loss > min(self._losses[: -self._patience]):
            self._begin(trainer, pl_module)
        self._losses.append(loss)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average under every name that a weight has."""
        named = pl_module.named_parameters(remove_duplicate=False)
        if self._average:
            checkpoint["average"] = {name: self._average[weight] for name, weight in named}

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What stands in the average now the next update takes no share of.
        self._since = cast(TrainingModule, pl_module).average_since = trainer.global_step
        self._average = {w: w.detach().clone() for w in pl_module.parameters()}

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in self._average.items():
            mine, other = share(weight), share(average)
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)


def averaged(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with its average as weights, itself if it has none: what is tested."""
    weights = {**checkpoint["state_dict"], **checkpoint.get("average", {})}
    return {**checkpoint, "state_dict": weights}
