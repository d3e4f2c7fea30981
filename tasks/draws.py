"""Training data without end, each batch drawn from its own number, and evaluation sets."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX
from tasks.position import TrainBatches
from tasks.ranks import rows_of_rank

Batch = TypeVar("Batch", bound=tuple[torch.Tensor, ...])

EPOCH_BATCHES = 1000
"""What counts as an epoch of data without end."""


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator that is a function of all parts, and of no global state."""
    # A CPU generator keeps 32 bits of its seed: shifted and added, some parts would be lost.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def rows(batch: Batch, chosen: slice) -> Batch:
    """Return some rows of every tensor of a batch."""
    of_batch: Any = type(batch)
    return of_batch(*(x[chosen] for x in batch))


def period_of(epoch_limit: int | float) -> int | None:
    """Return after how many batches data without end begins again; None: never.

    Args:
        epoch_limit: So many, or a share (float) of `EPOCH_BATCHES`; 1.0 is never.
    """
    if isinstance(epoch_limit, int):
        return max(1, epoch_limit)
    return None if epoch_limit == 1.0 else max(1, int(EPOCH_BATCHES * epoch_limit))


class TrainDraws(TrainBatches[Batch]):
    """The batches `draw(0), draw(1), ...` without end, for rank r rows [r B/W, (r+1) B/W) of each.

    Args:
        draw: Makes the batch of a number from the seed, over all ranks; the same one whenever it is
            asked.
        batch_size: Sequences over all ranks.
        seed: Of the data.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: Begin again after so many batches, as Lightning's `limit_train_batches` ends an
            epoch; a share (float) is one of `EPOCH_BATCHES`, and 1.0 never begins again.
        num_workers: As of `TrainBatches`.

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
        num_workers: int = 0,
    ) -> None:
        mine = rows_of_rank(batch_size, rank=rank, world_size=world_size)
        super().__init__(
            lambda number: rows(draw(number), mine),
            n_batches=EPOCH_BATCHES,
            period=period_of(epoch_limit),
            meaning={"batch_size": batch_size, "seed": seed},
            num_workers=num_workers,
        )


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


def next_of(n: int, step: int, *, batch_size: int, seed: int) -> Tensor:
    """Return which of n rows of a fixed set are a step's, one order of all after the other."""
    first = step * batch_size
    numbers = torch.arange(first, first + batch_size)
    epochs = range(first // n, (first + batch_size - 1) // n + 1)
    orders = [torch.randperm(n, generator=seeded("order", seed, e)) for e in epochs]
    return torch.cat(orders)[numbers - n * epochs[0]]


class EvalSets(Generic[Batch]):
    """Batches of fixed sets in which every sequence is counted once, whatever the world size.

    What the last batches lack is padded with `IGNORE_INDEX` targets; each process gets equally many
    batches.

    Args:
        parts: The sets, each a pair of inputs of one shape and their targets.
        batch_size: Sequences over all ranks, rounded up to a multiple of `world_size`.
        rank: This process among `world_size`.
        world_size: Number of processes.
    """

    def __init__(
        self, parts: Sequence[Batch], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        n = -(-batch_size // world_size)
        self._batches: list[Batch] = []
        for part in parts:
            for start in range(0, len(part[0]), n * world_size):
                mine = slice(start + rank * n, start + (rank + 1) * n)
                self._batches.append(_padded(rows(part, mine), n))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def _padded(batch: Batch, n: int) -> Batch:
    """Return a batch of n rows, of which those that were lacking have no targets."""
    inputs, targets = batch
    lacking, of_batch = n - len(inputs), cast(Any, type(batch))
    return of_batch(
        torch.cat([inputs, inputs.new_zeros(lacking, *inputs.shape[1:])]),
        torch.cat([targets, targets.new_full((lacking, *targets.shape[1:]), IGNORE_INDEX)]),
    )
