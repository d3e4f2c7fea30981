"""What the LightningModules of all tasks share: update, checks, logging."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from fwlight.errors import ConfigError, NumericalError
from fwlight.sharding import share, whole
from fwlight.training.optim import OptimizerConfig, build_optimizer, set_learning_rates
from fwlight.training.optimizer_state import hold_optimizer, parameters_without_state
from fwlight.training.showing import ShowingModule
from fwlight.types import Sequences


class TrainingModule(ShowingModule):
    """A network with its optimiser; subclasses add `training_step` and the evaluation.

    A training step returns `update_loss(nll_sum, targets)`. The gradient of an update is then that
    of the mean over all target tokens of all its batches and ranks, and every logged value is the
    exact one of its update, never a running mean. Device values are read at logged steps only,
    apart from the one number that says whether loss and gradient are finite.

    Metrics are logged at step n = number of completed updates.

    Args:
        network: What is trained.
        optimizer: How.
        max_steps: Number of updates of the whole training, the horizon of the schedule.

    Raises:
        TypeError: If `optimizer` is no such record.
        ValueError: If the schedule has no horizon, or is longer than it.
    """

    monitored: tuple[str, ...] = ("val/loss",)
    """What `callbacks.checkpoint.monitor` may be, of the metrics of an evaluation."""
    shardable = False
    """Whether trainer=fsdp takes it: all ranks call the parts of the network in step."""

    def __init__(self, network: nn.Module, *, optimizer: OptimizerConfig, max_steps: int) -> None:
        super().__init__()
        if not isinstance(optimizer, OptimizerConfig):
            raise TypeError(f"optimizer must be an OptimizerConfig, not {optimizer!r}")
        optimizer.check_horizon(max_steps)
        self.network = network
        self.optimizer_config = optimizer
        self.max_steps = max_steps
        self.latest: dict[str, float] = {}
        """The newest value of every main metric that was logged."""
        self.details: dict[str, float] = {}
        """And of all others."""
        self.tokens_seen = torch.zeros((), dtype=torch.float64)
        """Target tokens trained on by this process's run so far, over all ranks; on the device."""
        self.skipped_updates = 0
        """Updates of the run that were not made as they were not finite."""
        self.average_since: int | None = None
        """The update after which the mean of the weights began, once it did: `MovingAverage`."""
        self._built: Optimizer | None = None
        self._scheduled = False
        self._restored: dict[str, Any] | None = None
        self._sums: Tensor | None = None
        self._reference = torch.ones((), dtype=torch.float64)
        self._grad_norm = torch.zeros(())
        self._update: tuple[Tensor, Tensor, dict[str, float]] | None = None

    def update_loss(
        self, nll_sum: Float[Tensor, ""], targets: Tensor, *, penalty: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Return what to differentiate, given the sum over this rank's target tokens.

        DDP averages gradients over W ranks and Lightning divides each of k accumulated batches by
        k, so the sum is multiplied by W k / n with n the targets of all ranks in the first batch;
        `on_before_optimizer_step` turns n into the targets of all k batches.

        Args:
            nll_sum: Negative log-likelihood summed over this rank's targets of the batch.
            targets: How many they are, a scalar.
            penalty: What is added to the mean over targets, and not logged.
        """
        sums = torch.stack((nll_sum.detach().double(), targets.double()))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        if self._sums is None:
            self._sums, self._reference = sums, sums[1].clamp(min=1)
        else:
            self._sums = self._sums + sums
        factor = self.trainer.world_size * self.trainer.accumulate_grad_batches / self._reference
        loss = nll_sum if penalty is None else nll_sum + targets * penalty
        return loss * factor.to(nll_sum.dtype)

    def gradient_scale(self) -> Tensor:
        """Return what the gradient is multiplied by before an update, 1 for one batch."""
        assert self._sums is not None
        return self._reference / self._sums[1].clamp(min=1)

    def rate_factor(self) -> float:
        """Return what multiplies the learning rates of the update in progress; subclasses say."""
        return 1.0

    def step_metrics(self) -> dict[str, float]:
        """Read the values of the last update: the loss, learning rates and the gradient norm."""
        if self._update is None:
            return {}
        sums, grad_norm, rates = self._update
        nll, targets, norm = torch.cat((sums, grad_norm.double().view(1))).tolist()
        loss = nll / targets if targets else math.nan
        logged = {f"train/{name}": rate for name, rate in rates.items()}
        return {**self.loss_metrics("train", loss), **logged, "train/grad_norm": norm}

    def rehearse(self, batch: Any) -> None:
        """Do with one batch what an evaluation would, without a trace; subclasses say what."""

    def temper(self, temperature: float) -> None:
        """Evaluate at another temperature than 1; ConfigError where a subclass has none."""
        raise ConfigError(f"test.temperature={temperature} is of language models")

    def sequences(self, batch: Any) -> Mapping[str, Sequences]:
        """Return what the layers of every stack write of a batch; subclasses say.

        Stacks are called as in `fwlight.diagnostics.layers.Layer`, the only one "". Of a stack that
        is missing diagnostics know no tokens, and the masks alone that its layers were given.
        """
        return {}

    def loss_metrics(self, split: str, loss: float) -> dict[str, float]:
        """Return what is logged of a loss; subclasses add what follows from it."""
        return {f"{split}/loss": loss}

    def logs_at(self, step: int) -> bool:
        """Whether training metrics are logged at a step: every so many, and the last one."""
        # Lightning sets it where pyright does not see it.
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        return bool(every) and (step % every == 0 or step == self.trainer.max_steps)

    def record(self, metrics: dict[str, float], step: int, *, main: bool = True) -> None:
        """Log values at a step, and keep them in `latest` or `details`.

        Args:
            metrics: Values by name.
            step: The step.
            main: Whether a logger gets them that shows people the main things alone.
        """
        if self.trainer.sanity_checking or not metrics:
            return
        (self.latest if main else self.details).update(metrics)
        for logger in self.loggers:
            if main or _takes_all(logger):
                logger.log_metrics(metrics, step)

    @property
    def shows_all(self) -> bool:
        """Whether every logger takes what is not of the main things."""
        return all(map(_takes_all, self.loggers))

    # Lightning's hooks

    def configure_optimizers(self) -> Any:
        """Build the optimiser; its learning rate is set before every update.

        A subclass may return one optimiser of its own, as Lightning has it, alone or with a
        scheduler. Its options and rates are then its own: `optimizer.schedule` is for this one.
        """
        # A fused optimiser unscales float16 gradients itself, too late for clipping.
        fused = self._grad_scaler is None
        self._built = build_optimizer(self, self.optimizer_config, fused=fused)
        return self._built

    def on_fit_start(self) -> None:
        """Take of a checkpoint the optimiser's state alone: what is configured is in force.

        Raises:
            ConfigError: A subclass configured no optimiser, or several.
            CheckpointError: The state is not this optimiser's.
        """
        if len(self.trainer.optimizers) != 1 or not self.trainer.optimizers[0].param_groups:
            raise ConfigError(f"{type(self).__name__}.configure_optimizers must give one optimizer")
        own = not self.trainer.lr_scheduler_configs and self.trainer.optimizers[0] is self._built
        self._scheduled = own
        for group in self.trainer.optimizers[0].param_groups if own else ():
            group["initial_lr"] = group["lr"]
        checkpoint, self._restored = self._restored, None
        if checkpoint is not None:
            # A finished training is saved again without an update that would set its rate.
            hold_optimizer(self, self.trainer, checkpoint, scheduled=own)

    def on_train_start(self) -> None:
        """Count on the device."""
        self.tokens_seen = self.tokens_seen.to(self.device)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Any = None,
    ) -> None:
        """Set the learning rate, update, and log where a log is due."""
        step = self.trainer.global_step + 1
        groups = optimizer.param_groups
        rates, scale = {"lr": float(groups[0]["lr"])}, self.rate_factor()
        if self._scheduled:
            options: dict[str, Any] = {"max_steps": self.max_steps, "scale": scale}
            options["averages"] = self.average_since is not None
            rates = set_learning_rates(groups, self.optimizer_config, step, **options)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        assert self._sums is not None
        self._update = (self._sums, self._grad_norm, rates)
        self.tokens_seen = self.tokens_seen + self._sums[1]
        self._sums = None
        # Here and not in on_train_batch_end: whatever is saved there has these values logged.
        if self.logs_at(step):
            self.record(self.step_metrics(), step)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Norm the gradient by all targets of the update, measure it, and check that it is finite.

        Raises:
            NumericalError: on all ranks, before the update, if loss or gradient are not finite
                and no more updates may be skipped.
        """
        assert self._sums is not None
        gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
        if self.trainer.accumulate_grad_batches > 1:
            scale = self.gradient_scale()
            for gradient in gradients:
                share(gradient).mul_(scale)
        self._grad_norm = whole(torch.nn.utils.get_total_norm(gradients))
        # A float16 gradient may overflow: its scaler skips that update.
        norm = self._grad_norm if self._grad_scaler is None else torch.zeros_like(self._grad_norm)
        if not torch.isfinite(norm + self._sums[0]):
            self._skip_or_stop()

    def _skip_or_stop(self) -> None:
        """Make this update none, or end training if too many were none; the same on all ranks."""
        if self.skipped_updates >= self.optimizer_config.max_skipped_updates:
            what = "loss" if not torch.isfinite(cast(Tensor, self._sums)[0]) else "gradient"
            grads = ((n, p.grad) for n, p in self.named_parameters() if p.grad is not None)
            first = next((n for n, grad in grads if not whole(grad).isfinite().all()), "")
            raise NumericalError(
                f"the {what} of step {self.trainer.global_step + 1} is not finite"
                f"{f' (first in {first})' if what == 'gradient' else ''}; the update was not made: "
                "lower optimizer.lr, lengthen optimizer.warmup_steps, use "
                "trainer.precision=32-true or skip some (optimizer.max_skipped_updates); "
                "resume=auto goes on from the last checkpoint"
            )
        self.skipped_updates += 1
        for parameter in self.parameters():
            parameter.grad = None  # the optimiser leaves such a parameter alone

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that was measured, which spares a second pass over the gradient."""
        if gradient_clip_algorithm == "value":
            self.clip_gradients(
                optimizer,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(
                _parameters(optimizer), gradient_clip_val, self._grad_norm
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the newest metrics for the summary of a resumed run."""
        checkpoint["metrics"] = dict(self.latest)
        checkpoint["skipped_updates"] = self.skipped_updates
        if (stored := checkpoint.get("optimizer_states")) is not None:
            checkpoint["without_state"] = [parameters_without_state(state) for state in stored]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        self.latest = dict(checkpoint.get("metrics", {}))
        self.skipped_updates = checkpoint.get("skipped_updates", 0)
        # There is no trainer where weights alone are loaded.
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._restored = checkpoint  # until there is an optimiser

    @property
    def _grad_scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)


def _takes_all(logger: Any) -> bool:
    return getattr(logger, "takes_all", True)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return what is trained; to ask the module of all its modules takes longer than to norm it."""
    return [p for group in optimizer.param_groups for p in group["params"]]
