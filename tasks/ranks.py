"""What a trainer says of the data: which part is this process's, and how long an epoch is."""

from typing import Any

from fwlight.types import DataError


def ranks(trainer: Any) -> dict[str, int]:
    """Return `rank` and `world_size` of a trainer's process; without one there is one process."""
    if trainer is None:
        return {"rank": 0, "world_size": 1}
    return {"rank": trainer.global_rank, "world_size": trainer.world_size}


def epoch_limit(trainer: Any) -> int | float:
    """Return after how many batches (int), or which share of them, a trainer ends an epoch."""
    return 1.0 if trainer is None else trainer.limit_train_batches


def rows_of_rank(batch_size: int, *, rank: int, world_size: int) -> slice:
    """Return which of the rows of all ranks are this rank's: [r B/W, (r+1) B/W).

    Raises:
        DataError: They cannot be shared evenly.
    """
    if batch_size % world_size:
        raise DataError(
            f"task.batch_size={batch_size} sequences cannot be shared evenly by "
            f"{world_size} processes; choose a multiple of {world_size}"
        )
    per_rank = batch_size // world_size
    return slice(rank * per_rank, (rank + 1) * per_rank)
