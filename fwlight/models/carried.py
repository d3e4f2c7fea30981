"""What a language model carries from segment to segment: cut off, stored."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import (
    tree_leaves,
    tree_map_only,
    tree_structure,
    tree_unflatten,
)

_MOST_TOKENS = 1 << 53
"""Up to which a position is exact in float64."""


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Return a state of the same shape, every tensor put through `function`."""
    return tree_map_only(Tensor, function, state)


def pack_state(state: Any) -> list[Any]:
    """Return the leaves of a state in their order, for a checkpoint."""
    return tree_leaves(state)


def lanes_of(state: Any) -> int | None:
    """Return how many sequences a state is of; None if it holds nothing that tells."""
    return next((len(x) for x in tree_leaves(state) if isinstance(x, Tensor) and x.ndim), None)


def unpack_state(packed: Any, *, empty_state: Callable[[int], Any]) -> Any:
    """Return the state that was packed.

    Args:
        packed: Leaves as `pack_state` returns them, or as version 0.1 did, within named parts.
        empty_state: Of the model; what it returns says what its states look like.

    Raises:
        ValueError: No state of this model was packed.
    """
    leaves = list(_leaves(packed))
    empty = empty_state(lanes_of(leaves) or 0)
    wanted = tree_leaves(empty)
    if len(leaves) != len(wanted) or not all(map(_fits, leaves, wanted)):
        raise ValueError("the carried state is not one of this model")
    return tree_unflatten(leaves, tree_structure(empty))


def _leaves(packed: Any) -> Iterator[Any]:
    if isinstance(packed, dict):
        packed = packed.get("parts")
    if isinstance(packed, list):
        for part in packed:
            yield from _leaves(part)
    else:
        yield packed


def _fits(leaf: Any, wanted: Any) -> bool:
    if not isinstance(leaf, Tensor) or not isinstance(wanted, Tensor):
        counts = not isinstance(leaf, int) or 0 <= leaf < _MOST_TOKENS
        return type(leaf) is type(wanted) and counts
    return (
        leaf.shape == wanted.shape
        and leaf.is_floating_point() == wanted.is_floating_point()
        # What is not finite in an empty state may still be so.
        and bool((leaf.isfinite() | (leaf == wanted)).all())
    )
