"""Endless training data that is drawn when it is needed, each batch from its own number."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch

from fwlight.types import DataError

Batch = TypeVar("Batch", bound=tuple[torch.Tensor, ...])

EPOCH_BATCHES = 1000
"""What counts as an epoch of data without end."""


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator that is a function of all parts, and of no global state."""
    # A CPU generator keeps 32 bits of its seed: shifted and added, some parts would be lost.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def refuse_other_data(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare what a checkpoint was trained on with the data at hand.

    Raises:
        DataError: A value differs.
    """
    for name, value in now.items():
        if stored[name] != value:
            raise DataError(
                f"the checkpoint was trained with task.{name}={stored[name]}, now it is "
                f"task.{name}={value}; give the old value, or start anew in another run_dir"
            )


def rows(batch: Batch, chosen: slice) -> Batch:
    """Return some rows of every tensor of a batch."""
    of_batch: Any = type(batch)
    return of_batch(*(x[chosen] for x in batch))


class TrainDraws(Generic[Batch]):
    """The batches `draw(0), draw(1), ...` without end, for rank r rows [r B/W, (r+1) B/W) of each.

    The position, which no world size changes, moves when a batch is taken, however training is cut
    into iterations, epochs and resumes. Lightning stores and restores it by `state_dict` and
    `load_state_dict`.

    Args:
        draw: Makes the batch of a number from the seed, over all ranks; the same one whenever it is
            asked.
        batch_size: Sequences over all ranks.
        seed: Of the data.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: Begin again after so many batches, as Lightning's `limit_train_batches` ends an
            epoch; a share (float) is one of `EPOCH_BATCHES`, and 1.0 never begins again.

    Raises:
        DataError: `batch_size` does not divide over the ranks.
    """

    def __init__(
        self,
        draw: Callable[[int], Batch],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_limit: int | float = 1.0,
    ) -> None:
        if batch_size % world_size:
            raise DataError(
                f"task.batch_size={batch_size} sequences cannot be shared evenly by "
                f"{world_size} processes; choose a multiple of {world_size}"
            )
        self._draw, self.batch_size, self.seed = draw, batch_size, seed
        per_rank = batch_size // world_size
        self._mine = slice(rank * per_rank, (rank + 1) * per_rank)
        self._cycle = None
        if epoch_limit != 1.0 or isinstance(epoch_limit, int):
            share = isinstance(epoch_limit, float)
            self._cycle = max(1, int(EPOCH_BATCHES * epoch_limit) if share else int(epoch_limit))
        self._position = 0

    def __len__(self) -> int:
        # Without a length Lightning would fetch one batch ahead, and store a position too far on.
        return EPOCH_BATCHES

    def __iter__(self) -> Iterator[Batch]:
        # Only batches that were taken move the position: Lightning may break an iteration off.
        for _ in range(EPOCH_BATCHES):
            step = self._position
            self._position = step + 1 if self._cycle is None else (step + 1) % self._cycle
            yield rows(self._draw(step), self._mine)

    def state_dict(self) -> dict[str, int]:
        """The next batch, and what a batch means."""
        return {"step": self._position, "batch_size": self.batch_size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the stored batch.

        Raises:
            DataError: It was counted with another `batch_size` or `seed`.
        """
        for key in ("batch_size", "seed"):
            if state[key] != getattr(self, key):
                raise DataError(
                    f"the checkpoint was trained with task.{key}={state[key]}, now it is "
                    f"{getattr(self, key)}: its place in the data is lost; give the old value"
                )
        self._position = state["step"]


class EvalDraw(Generic[Batch]):
    """One batch, drawn at every iteration.

    Args:
        draw: Makes it.
    """

    def __init__(self, draw: Callable[[], Batch]) -> None:
        self._draw = draw

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self._draw()
