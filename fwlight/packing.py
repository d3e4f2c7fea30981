"""Several sequences in one row: none of them sees what stands before it.

`starts` is True at the first token of a sequence. A row may begin within one, which then goes on
from the initial state, or from an empty one. All that is cut off is cut by masks, never by adding
and taking away: however large the neighbours are, nothing of them is left.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
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


class Pieces:
    """The sequences of all rows, each laid out in a row of its own and padded at its end.

    Args:
        starts: True at the first token of a sequence; the first token of a row always is one.

    Attributes:
        padding_mask: True `[n, l]` where a row of the layout is padded.
    """

    def __init__(self, starts: Bool[Tensor, "b t"]) -> None:
        pieces = starts.clone()
        pieces[:, 0] = True
        first, last = ends_of(pieces)
        piece = pieces.flatten().cumsum(0).view(starts.shape) - 1  # numbered row by row
        column = torch.arange(starts.shape[1], device=starts.device) - first
        self.place = piece, column
        self._shape = int(piece[-1, -1]) + 1, int((last - first).max()) + 1
        self.padding_mask = torch.ones(self._shape, dtype=torch.bool, device=starts.device)
        self.padding_mask[self.place] = False

    def lay_out(self, x: Shaped[Tensor, "b h t *d"]) -> Shaped[Tensor, "n h l *d"]:
        """Return every sequence in its row, zeros after its end."""
        x = x.movedim(2, 1)
        laid_out = x.new_zeros(*self._shape, *x.shape[2:])
        return laid_out.index_put(self.place, x).movedim(2, 1)

    def back(self, x: Shaped[Tensor, "n h l *d"]) -> Shaped[Tensor, "b h t *d"]:
        """Return what stands for every token of the rows."""
        return x.movedim(2, 1)[self.place].movedim(2, 1)


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
