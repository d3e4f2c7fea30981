"""Which part of the data is this process's."""

from typing import Any


def ranks(trainer: Any) -> dict[str, int]:
    """Return `rank` and `world_size` of a trainer's process; without one there is one process."""
    if trainer is None:
        return {"rank": 0, "world_size": 1}
    return {"rank": trainer.global_rank, "world_size": trainer.world_size}
