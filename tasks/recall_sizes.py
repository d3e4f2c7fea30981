"""How many pairs fit into a sequence of multi-query recall; checked before torch is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from fwlight.types import DataError
from tasks.required import require


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration; see `check_pairs`."""
    require(task, "seq_len", "vocab_size")
    check_pairs(task["n_pairs"], seq_len=task["seq_len"], vocab_size=task["vocab_size"])


def check_pairs(n_pairs: Sequence[int], *, seq_len: int, vocab_size: int) -> None:
    """Check that pairs, their queries, keys and values have their places.

    Raises:
        DataError: They have not, or a number of pairs is below 1 or given twice.
    """
    if not n_pairs or min(n_pairs) < 1 or len(set(n_pairs)) < len(n_pairs):
        raise DataError(f"task.n_pairs={list(n_pairs)} must be different numbers from 1 on")
    if seq_len < 4 * max(n_pairs):
        raise DataError(
            f"task.seq_len={seq_len} is too short for {max(n_pairs)} pairs and their queries; "
            f"it must be at least {4 * max(n_pairs)}"
        )
    if vocab_size < 2 * max(n_pairs) + 2:
        raise DataError(
            f"task.vocab_size={vocab_size} is too small for {max(n_pairs)} keys and values; "
            f"it must be at least {2 * max(n_pairs) + 2}"
        )
