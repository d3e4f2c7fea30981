"""Endless training data that is drawn when it is needed, each batch from its own number."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

Batch = TypeVar("Batch")

EPOCH = 1000
"""Batches that Lightning counts as an epoch; it means nothing where no data ends."""


def generator(*key: object) -> torch.Generator:
    """Return a random generator that follows from `key` alone, and no global state."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    # torch uses 32 bits of a seed on CPUs.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class TrainDraws(Generic[Batch]):
    """The batches `draw(0), draw(1), ...`; an iteration goes on where the last one stopped.

    Lightning stores and restores the position by `state_dict` and `load_state_dict`.

    Args:
        draw: Makes the batch of a number; the same one whenever it is asked.
        epoch_limit: Begin again after so many batches, as Lightning's `limit_train_batches` ends an
            epoch; a float, a share of an epoch, is no limit.
    """

    def __init__(self, draw: Callable[[int], Batch], *, epoch_limit: int | float = 1.0) -> None:
        self._draw = draw
        self._limit = epoch_limit if isinstance(epoch_limit, int) else None
        self._position = 0

    def __len__(self) -> int:
        # Without a length Lightning would fetch a batch ahead, and the position would be too far.
        return EPOCH

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(EPOCH):
            position = self._position
            self._position += 1
            if self._limit is not None:
                self._position %= self._limit
            yield self._draw(position)

    def state_dict(self) -> dict[str, int]:
        """The number of the next batch."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there."""
        self._position = state["position"]


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
