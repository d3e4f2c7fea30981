"""Several sequences in one row: none of them sees what stands before it.

`starts` is True at the first token of a sequence. A row may begin within one, which then goes on
from the initial state, or from an empty one. All that is cut off is cut by masks, never by adding
and taking away: however large the neighbours are, nothing of them is left.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BEFORE = -(2**31)
"""Where sequences begin that began before the row: before whatever is carried of them."""


def begins_at(starts: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return where in the row the sequence of every token begins; far below 0 if before it."""
    places = torch.arange(starts.shape[1], device=starts.device)
    return places.where(starts, _BEFORE).cummax(1).values


def ends_of(starts: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Return the first and last place in the row of every token's sequence."""
    places = torch.arange(starts.shape[1] + 1, device=starts.device)
    following = places[1:].where(F.pad(starts, (0, 1), value=True)[:, 1:], starts.shape[1])
    last = following.flip(1).cummin(1).values.flip(1) - 1
    return begins_at(starts).clamp(min=0), last


def sums_since(x: Float[Tensor, "b h t k"], first: Int[Tensor, "b t"]) -> Float[Tensor, "b h t k"]:
    """Return the sum of x over each token's sequence so far, by `begins_at`; in log2(t) passes."""
    places = torch.arange(x.shape[2], device=x.device)
    reach = 1
    while reach < x.shape[2]:
        # So far x holds the sums of the last `reach` tokens, as far as they are of the sequence.
        earlier = x[:, :, :-reach].masked_fill(
            (places[:-reach] < first[:, reach:])[:, None, :, None], 0.0
        )
        x = torch.cat([x[:, :, :reach], x[:, :, reach:] + earlier], dim=2)
        reach *= 2
    return x


def seen_by(first: Int[Tensor, "b t"], n_keys: int) -> Bool[Tensor, "b t s"]:
    """Return which of the keys, the last of which are the row's own, each token may see.

    Of keys before the row only tokens of the sequence that began there.
    """
    carried = n_keys - first.shape[1]
    places = torch.arange(n_keys, device=first.device)
    now = places[carried:, None]
    return (places >= (first + carried)[..., None]) & (places <= now)
