"""How fast training is, and what it takes."""

import sys
import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from fwlight.lightning_internals import completes_update
from fwlight.training.module import TrainingModule


class Throughput(Callback):
    """Logs `throughput/...` where the training metrics are, when the device is read anyway.

    - tokens_per_second: target tokens over all ranks, the mean over the steps since the value
      before, evaluation left out.
    - memory_gib: the most that this process has held so far, on a GPU of the GPU's memory.
    - model_flops_utilisation: 6 floating-point operations per weight of a matrix and target token
      (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1; what memories cost is not counted), over the
      peak of all devices; only where Lightning knows the device's peak.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._tokens = 0.0
        self._paused = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        module = cast(TrainingModule, pl_module)
        self._since, self._tokens = time.monotonic(), float(module.tokens_seen)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it run on."""
        self._since += time.monotonic() - self._paused

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the speed where a log is due."""
        module = cast(TrainingModule, pl_module)
        step = trainer.global_step
        if not module.logs_at(step) or not completes_update(trainer):
            return
        now, tokens = time.monotonic(), float(module.tokens_seen)
        if now > self._since:
            speed = (tokens - self._tokens) / (now - self._since)
            values = {"tokens_per_second": speed, "memory_gib": _memory(module.device) / 2**30}
            peak = _peak(module.device, str(trainer.precision))
            if peak:
                weights = sum(p.numel() for p in module.network.parameters() if p.ndim > 1)
                used = 6 * weights * speed / (peak * trainer.world_size)
                values["model_flops_utilisation"] = used
            module.record({f"throughput/{name}": value for name, value in values.items()}, step)
        self._since, self._tokens = now, tokens


def _memory(device: torch.device) -> float:
    """Return the most bytes held so far; NaN where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _peak(device: torch.device, precision: str) -> float | None:
    """Return the operations per second that a device can do, None if not known."""
    if device.type != "cuda":
        return None
    dtype = torch.bfloat16 if "bf16" in precision else torch.float32
    return get_available_flops(device, torch.float16 if precision.startswith("16") else dtype)
