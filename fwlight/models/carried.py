"""What a language model carries from segment to segment: cut off, regrouped, stored."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import (
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_structure,
    tree_unflatten,
)

from fwlight.models.decoder_lm import DecoderLM, LMState

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


def features_by_document(
    model: DecoderLM,
    tokens: Int[Tensor, "b t"],
    documents: Bool[Tensor, "b t"],
    *,
    initial_state: LMState | None = None,
) -> tuple[Float[Tensor, "b t m"], LMState]:
    """Return what `model.features` does, with an empty memory wherever a document begins.

    The rows are cut there, and the pieces read side by side, padded at their ends: the first piece
    of a row goes on from the row's state, the others from an empty memory, and what the last one
    ends with is carried on. Exact for models without positions.

    Args:
        model: The language model.
        tokens: Token ids.
        documents: True at the first token of a document.
        initial_state: The state to continue from; None is empty.

    Raises:
        ValueError: If the model has positions: documents would begin at different ones.
    """
    if model.positions is not None:
        raise ValueError(
            "documents that begin within a segment need model.positions=none: the positions of "
            "the rows would differ"
        )
    b, t = tokens.shape
    starts = documents.clone()
    starts[:, 0] = True
    piece = starts.flatten().cumsum(0).view(b, t) - 1  # pieces are numbered row by row
    first = starts.flatten().nonzero().squeeze(1)
    column = torch.arange(t, device=tokens.device) - (first % t)[piece]
    n = len(first)
    shape = (n, int(column.max()) + 1)
    laid_out = tokens.new_zeros(shape)
    laid_out[piece, column] = tokens
    padding = torch.ones(shape, dtype=torch.bool, device=tokens.device)
    padding[piece, column] = False
    # The first token of a row may itself begin a document.
    row, goes_on = first // t, (first % t == 0) & ~documents.flatten()[first]
    state = None
    if initial_state is not None:
        empty = model.empty_state(n)
        state = tree_map(lambda x, e: _for_pieces(x, e, row, goes_on), initial_state, empty)
    hidden, state = model.features(laid_out, initial_state=state, padding_mask=padding)
    last = piece[:, -1]
    return hidden[piece, column], map_state(lambda x: x[last], state)


def _for_pieces(x: Any, empty: Any, row: Tensor, goes_on: Tensor) -> Any:
    """Give every piece its row's state, or where it does not go on what an empty memory has."""
    if not isinstance(x, Tensor):
        return x
    return x[row].where(goes_on.view(-1, *(1 for _ in x.shape[1:])), empty.to(x.dtype))
