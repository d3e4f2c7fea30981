"""What a run must have to be repeated bit for bit: random numbers of its own, as many threads."""

import hashlib
import random
import sys
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class RandomState(Callback):
    """Seeds every rank on its own, keeps evaluation out of its stream, and stores the stream.

    Training draws from torch's and Python's global generators (dropout, for one). The model is
    built before training starts, with the same seed on all ranks.

    The number of threads is stored too: long sums are split over them, in torch (the gradients of
    LayerNorm, for one) as in the native kernels where there are more threads than heads. Going on
    with another one is told.

    Args:
        seed: The run's seed; rank r draws from a stream given by (seed, r).
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._restored: list[dict[str, Any]] | None = None
        self._before_evaluation: dict[str, Any] | None = None
        self._threads: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The number of threads of a process."""
        return {"threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._threads = state_dict["threads"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the stored streams until training starts."""
        self._restored = checkpoint.get("rng")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the stored stream, or start one; say if the threads are not as many."""
        before, now = self._threads, torch.get_num_threads()
        if before not in (None, now) and pl_module.device.type == "cpu" and trainer.is_global_zero:
            print(
                f"warning: the checkpoint is of a run with {before} threads a process, this one "
                f"has {now}: sums are rounded differently from here on; OMP_NUM_THREADS={before} "
                "repeats it bit for bit",
                file=sys.stderr,
                flush=True,
            )
        restored, self._restored = self._restored, None
        if restored is not None and len(restored) == trainer.world_size:
            set_rng_state(restored[trainer.global_rank])
        else:
            # Another number of ranks goes on with streams that nobody has drawn from.
            seed_rank(self.seed, trainer.global_rank, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training's stream stands."""
        self._before_evaluation = get_rng_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it back."""
        if self._before_evaluation is not None:
            set_rng_state(self._before_evaluation)
            self._before_evaluation = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the stream of every rank; all ranks save together."""
        states = [get_rng_state()]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, get_rng_state())
        checkpoint["rng"] = states


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed torch's and Python's generators of this process from (seed, rank, step)."""
    digest = hashlib.sha256(f"{seed} {rank} {step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    random.seed(int.from_bytes(digest[8:16], "little"))


def get_rng_state() -> dict[str, Any]:
    """Return the state of torch's (CPU and current CUDA device) and Python's generators."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {
            "version": version,
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "gauss": gauss,
        },
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `get_rng_state` returned."""
    torch.set_rng_state(_bytes(state["torch"]))
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(state: Tensor) -> Tensor:
    return state.to(device="cpu", dtype=torch.uint8)
