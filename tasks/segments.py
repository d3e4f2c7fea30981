"""How training cuts the lanes of a text into segments."""

import math
from typing import NamedTuple

import torch

from fwlight.types import DataError
from tasks.draws import seeded

_HALVED, _STD, _LEAST, _MORE = 0.05, 5.0, 5, 10


CONTEXTS, LENGTHS = ("segment", "carried"), ("fixed", "drawn")


def check_lengths(lengths: str, *, context: str, seq_len: int) -> None:
    """Raise DataError if lengths are drawn of what does not go on, or is too short for that."""
    if lengths == "drawn" and (context != "carried" or seq_len < _MORE):
        raise DataError(
            f"task.lengths=drawn needs task.context=carried (it is {context}) and task.seq_len of "
            f"at least {_MORE} (it is {seq_len})"
        )


class Segment(NamedTuple):
    """Tokens of every lane that make a training batch."""

    start: int
    end: int
    continues: bool
    """Whether the next segment is not at the beginning of the lanes."""
    rate: float = 1.0
    """Factor on the learning rate."""


class FixedSegments:
    """Segments of `seq_len` tokens, the last one perhaps shorter, in the same order for ever.

    Args:
        length: Tokens of a lane.
        seq_len: Tokens of a segment.
        epoch_limit: As of `tasks.lanes.TrainLanes`.
    """

    def __init__(self, length: int, *, seq_len: int, epoch_limit: int | float) -> None:
        self._length, self._seq_len = length, seq_len
        self.n_segments = -(-length // seq_len)
        self.period = _limited(self.n_segments, epoch_limit)
        """Segments of a pass."""

    def __getitem__(self, number: int) -> Segment:
        start = number * self._seq_len
        end = min(start + self._seq_len, self._length)
        return Segment(start, end, number + 1 < self.period)

    def after(self, number: int) -> int:
        """Return the number of the next segment."""
        return (number + 1) % self.period


class DrawnSegments:
    """Segments whose lengths are drawn anew in every pass over the lanes.

    A length is normal around `seq_len`, or one time in twenty around its half, with a standard
    deviation of 5 tokens, at least 5 and at most 10 over `seq_len`; the learning rate is multiplied
    by its share of `seq_len` (Merity et al. 2018, arXiv 1708.02182, sec. 4.1, and its code; the
    upper limit is that of Schlag et al. 2021a). Tokens so stand at changing places of segments.

    The numbers of pass p are n p, n p + 1, ... with n the most segments that a pass can have. All
    lengths are a function of (seed, p), so any segment can be found from its number.

    Args:
        length: Tokens of a lane.
        seq_len: The usual length, at least 10.
        seed: Of the lengths.
        epoch_limit: As of `tasks.lanes.TrainLanes`.
    """

    period = None
    """There is no number that comes again."""

    def __init__(self, length: int, *, seq_len: int, seed: int, epoch_limit: int | float) -> None:
        self._length, self._seq_len, self._seed = length, seq_len, seed
        self._epoch_limit = epoch_limit
        self._most = -(-length // _LEAST)
        self._drawn: tuple[int, list[int]] = (-1, [])
        mean = (1 - _HALVED / 2) * seq_len - 0.5
        self.n_segments = math.ceil(length / mean)
        """As many as a pass has on average."""

    def __getitem__(self, number: int) -> Segment:
        number, i = divmod(number, self._most)
        lengths = self._lengths(number)
        i = min(i, len(lengths) - 1)  # no number of ours is beyond
        start = sum(lengths[:i])
        end = min(start + lengths[i], self._length)
        return Segment(start, end, i + 1 < len(lengths), lengths[i] / self._seq_len)

    def after(self, number: int) -> int:
        """Return the number of the next segment."""
        n, i = divmod(number, self._most)
        return number + 1 if i + 1 < len(self._lengths(n)) else (n + 1) * self._most

    def _lengths(self, number: int) -> list[int]:
        """Return the lengths of a pass; that of the last one may reach beyond the lanes."""
        if self._drawn[0] != number:
            generator = seeded(self._seed, "lengths", number)
            halved = torch.rand(self._most, generator=generator) < _HALVED
            around = self._seq_len * (1 - halved.double() / 2)
            drawn = torch.randn(self._most, generator=generator, dtype=torch.float64)
            lengths = (around + _STD * drawn).clamp(_LEAST, self._seq_len + _MORE).long()
            n = 1 + int((lengths.cumsum(0) < self._length).sum())
            self._drawn = number, lengths[: _limited(n, self._epoch_limit)].tolist()
        return self._drawn[1]


def _limited(n: int, epoch_limit: int | float) -> int:
    """Return how many of n segments an epoch has."""
    share = epoch_limit if isinstance(epoch_limit, int) else int(n * epoch_limit)
    return max(1, min(n, share))
