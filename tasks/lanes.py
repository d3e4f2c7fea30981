"""A token stream cut into contiguous batch lanes, for training and for evaluation.

With a stream x_0 .. x_N there are N targets. Training cuts them into B lanes of equal length and
walks all lanes at once, one segment of `seq_len` tokens a step, so that each lane reads on where it
stopped:

    lane 0   x_0 ..... | x_T ..... | ...        each segment's targets are its inputs
    lane 1   x_L ..... | x_L+T ... | ...        one token later
             step 0      step 1

Rank r of W takes lanes [r B/W, (r+1) B/W). Neither loader uses a random number.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX, CarriedBatch, DataError, LMBatch, PackedBatch
from tasks.position import TrainBatches
from tasks.ranks import rows_of_rank
from tasks.segments import DrawnSegments, FixedSegments


class TrainLanes(TrainBatches[LMBatch | PackedBatch | CarriedBatch]):
    """Batches `[B/W, T]` of the training stream, in the same order again and again.

    An iteration reads on where the last one stopped, so that the s-th batch taken is the same
    however a run was cut into iterations, epochs and resumes. The last segment may be shorter than
    `seq_len`; fewer than B tokens at the stream's end, which fill no lane evenly, are left out.

    With `carried`, every segment but the first of a lane goes on from the one before it
    (`CarriedBatch`). With `lengths_seed` segments are drawn; see `tasks.segments.DrawnSegments`.

    Args:
        stream: Token ids `[N+1]`.
        batch_size: Lanes over all ranks.
        seq_len: Tokens of a segment.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: Begin again after so many segments (int) or such a share of them (float), as
            Lightning's `limit_train_batches` ends an epoch.
        carried: Whether segments go on from those before them.
        documents: True `[N+1]` where a document begins that must not see what was before.
        num_workers: As of `TrainBatches`.
        lengths_seed: Of the lengths of segments, of about `seq_len` tokens then; None: they are
            all the same.

    Raises:
        DataError: `batch_size` does not divide over the ranks, or the stream has fewer targets
            than lanes.
    """

    def __init__(
        self,
        stream: Tensor,
        *,
        batch_size: int,
        seq_len: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_limit: int | float = 1.0,
        carried: bool = False,
        documents: Tensor | None = None,
        num_workers: int = 0,
        lengths_seed: int | None = None,
    ) -> None:
        mine = rows_of_rank(batch_size, rank=rank, world_size=world_size)
        targets = len(stream) - 1
        if targets < batch_size:
            raise DataError(
                f"the training data has {max(targets, 0)} target tokens, too few for "
                f"task.batch_size={batch_size} sequences; use more text or fewer sequences"
            )
        length = targets // batch_size
        self._carried = carried
        self._inputs = stream[: batch_size * length].view(batch_size, length)[mine]
        self._documents: Tensor | None = None
        if documents is not None:
            self._documents = documents[: batch_size * length].view(batch_size, length)[mine]
        self._targets = stream[1 : batch_size * length + 1].view(batch_size, length)[mine]
        meaning = {"batch_size": batch_size, "seq_len": seq_len}
        options = {"seq_len": seq_len, "epoch_limit": epoch_limit}
        self._segments: FixedSegments | DrawnSegments = FixedSegments(length, **options)
        if lengths_seed is not None:
            self._segments = DrawnSegments(length, seed=lengths_seed, **options)
            meaning["lengths_seed"] = lengths_seed
        super().__init__(
            self._segment,
            n_batches=self._segments.n_segments,
            period=self._segments.period,
            meaning=meaning,
            num_workers=num_workers,
            after=self._segments.after,
        )

    def _segment(self, number: int) -> LMBatch | PackedBatch | CarriedBatch:
        segment = self._segments[number]
        columns = slice(segment.start, segment.end)
        batch = LMBatch(self._inputs[:, columns].long(), self._targets[:, columns].long())
        documents = None if self._documents is None else self._documents[:, columns]
        if not self._carried:
            return batch if documents is None else PackedBatch(*batch, documents)
        begins, more = segment.start == 0, segment.continues
        return CarriedBatch(*batch, begins, more, documents, rate=segment.rate)


class EvalLanes:
    """Batches `[lanes, T]` of an evaluation stream, in which every target is counted once.

    The stream is cut into segments of `seq_len` targets first and the segments are then laid into
    lanes, so that each token is predicted from the same context whatever the number of lanes or
    processes. What the last lanes lack is padded with `IGNORE_INDEX` targets; each process gets
    equally many batches.

    Args:
        stream: Token ids `[N+1]`.
        batch_size: Lanes over all ranks, rounded up to a multiple of `world_size`.
        seq_len: Tokens of a segment.
        rank: This process among `world_size`.
        world_size: Number of processes.
        documents: As of `TrainLanes`.

    Raises:
        DataError: the stream has no target.
    """

    def __init__(
        self,
        stream: Tensor,
        *,
        batch_size: int,
        seq_len: int,
        rank: int = 0,
        world_size: int = 1,
        documents: Tensor | None = None,
    ) -> None:
        targets = len(stream) - 1
        if targets < 1:
            raise DataError("the evaluation data has no target token; two tokens are needed")
        seq_len = min(seq_len, targets)
        n_segments = -(-targets // seq_len)
        per_rank = -(-batch_size // world_size)
        per_lane = -(-n_segments // (per_rank * world_size))
        self._stream, self._seq_len, self._documents = stream, seq_len, documents
        self._per_lane = per_lane
        self._first_segments = [(rank * per_rank + lane) * per_lane for lane in range(per_rank)]

    def __len__(self) -> int:
        return self._per_lane

    def __iter__(self) -> Iterator[LMBatch | PackedBatch]:
        for step in range(self._per_lane):
            starts = [(first + step) * self._seq_len for first in self._first_segments]
            batch = LMBatch(*rows_of(self._stream, starts, self._seq_len))
            documents = documents_of(self._documents, starts, self._seq_len)
            yield batch if documents is None else PackedBatch(*batch, documents)


def documents_of(documents: Tensor | None, starts: Sequence[int], length: int) -> Tensor | None:
    """Return where documents begin in segments `[len(starts), length]`; None if it is not asked."""
    if documents is None:
        return None
    found = torch.zeros(len(starts), length, dtype=torch.bool)
    for row, start in enumerate(starts):
        piece = documents[start : start + length]
        found[row, : len(piece)] = piece
    return found


def rows_of(stream: Tensor, starts: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets `[len(starts), length]` of segments; what is beyond is ignored."""
    shape = (len(starts), length)
    inputs = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    for row, start in enumerate(starts):
        piece = stream[start : start + length + 1]
        if len(piece) > 1:
            inputs[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = piece[1:]
    return inputs, targets
