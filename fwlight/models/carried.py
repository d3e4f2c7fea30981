"""What a language model carries from segment to segment: cut off, regrouped, stored."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fwlight.mixers import ConvState, KeyValueCache, MemoryState
from fwlight.models.decoder_lm import DecoderLM, LMState

_KINDS = {kind.__name__: kind for kind in (LMState, MemoryState, ConvState, KeyValueCache)}


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Return a state of the same shape, every tensor put through `function`."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple):
        parts = [map_state(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def pack_state(state: Any) -> Any:
    """Return a state as plain containers, for a checkpoint."""
    if not isinstance(state, tuple):
        return state
    parts = [pack_state(part) for part in state]
    return {"kind": type(state).__name__, "parts": parts} if hasattr(state, "_fields") else parts


def unpack_state(packed: Any) -> Any:
    """Return the state that was packed.

    Raises:
        ValueError: It holds what no state of this version does.
    """
    if isinstance(packed, list):
        return tuple(unpack_state(part) for part in packed)
    if not isinstance(packed, dict):
        return packed
    kind = _KINDS.get(packed.get("kind", ""))
    if kind is None:
        raise ValueError(f"a state of kind {packed.get('kind')!r} is unknown")
    return kind(*(unpack_state(part) for part in packed["parts"]))


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
        state = map_state(lambda x: _for_pieces(x, row, goes_on), initial_state)
    hidden, state = model.features(laid_out, initial_state=state, padding_mask=padding)
    last = piece[:, -1]
    return hidden[piece, column], map_state(lambda x: x[last], state)


def _for_pieces(x: Tensor, row: Tensor, goes_on: Tensor) -> Tensor:
    """Give every piece its row's state, or where it does not go on what an empty memory has."""
    keep = goes_on.view(-1, *(1 for _ in x.shape[1:]))
    empty = -torch.inf if x.ndim == 2 else 0.0  # a map's constant that is not chosen yet
    return x[row].where(keep, x.new_full((), empty))
