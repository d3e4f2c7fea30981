"""Evaluation in which tokens see more than their own segment: sliding windows, carried memories.

Both count every target of the stream once, like `tasks.lanes.EvalLanes`, and give each process
equally many batches, the last ones filled up with targets that are ignored.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX, CarriedBatch, DataError, LMBatch, PackedBatch
from tasks.lanes import EvalLanes, documents_of, rows_of

EVALUATIONS = ("segment", "sliding", "carried")


class SlidingWindows:
    """Windows of `seq_len` inputs that move on by `stride`, several in a batch.

    The first window's targets all count, of every later one those that no window before had: the
    last `stride`, so that each token is predicted from at least seq_len - stride + 1 tokens. A
    stride of 1 is the evaluation of Schlag et al. (2021b), tables 2, 3 and 5.

    Args:
        stream: Token ids `[N+1]`.
        batch_size: Windows of a batch over all ranks, rounded up to a multiple of `world_size`;
            changes no result.
        seq_len: Inputs of a window.
        stride: How far a window is from the one before it, at most `seq_len`.
        rank: This process among `world_size`.
        world_size: Number of processes.
        documents: True `[N+1]` where a document begins that must not see what was before.

    Raises:
        DataError: the stream has no target, or the stride is longer than a window.
    """

    def __init__(
        self,
        stream: Tensor,
        *,
        batch_size: int,
        seq_len: int,
        stride: int,
        rank: int = 0,
        world_size: int = 1,
        documents: Tensor | None = None,
    ) -> None:
        targets = _targets(stream)
        if stride > seq_len:
            raise DataError(
                f"task.eval_stride={stride} leaves out tokens between windows of "
                f"{seq_len} tokens; choose at most {seq_len}"
            )
        self._stream, self._seq_len, self._stride = stream, min(seq_len, targets), stride
        self._documents = documents
        self._n_windows = 1 + -(-(targets - self._seq_len) // stride)
        self._rows = -(-batch_size // world_size)
        self._n_batches = -(-self._n_windows // (self._rows * world_size))
        self._first = rank * self._rows * self._n_batches

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[LMBatch | PackedBatch]:
        for batch in range(self._n_batches):
            first = self._first + batch * self._rows
            windows = torch.arange(first, first + self._rows)
            starts = [
                int(w) * self._stride if w < self._n_windows else len(self._stream) for w in windows
            ]
            inputs, targets = rows_of(self._stream, starts, self._seq_len)
            targets[windows > 0, : self._seq_len - self._stride] = IGNORE_INDEX
            documents = documents_of(self._documents, starts, self._seq_len)
            if documents is None:
                yield LMBatch(inputs, targets)
            else:
                yield PackedBatch(inputs, targets, documents)


class CarriedLanes:
    """Lanes read segment by segment, each from what the memory held at the end of the last.

    The stream is cut into `n_lanes` lanes of equal length first, so the length of a segment changes
    nothing (for a model without positions). With one lane no context is cut, which is the
    evaluation of Schlag et al. (2021b), table 4; with more, each lane begins with an empty memory.

    Args:
        stream: Token ids `[N+1]`.
        n_lanes: Over all ranks; a rank may have none.
        seq_len: Tokens of a segment.
        rank: This process among `world_size`.
        world_size: Number of processes.
        documents: True `[N+1]` where a document begins that must not see what was before.

    Raises:
        DataError: the stream has fewer targets than lanes.
    """

    def __init__(
        self,
        stream: Tensor,
        *,
        n_lanes: int,
        seq_len: int,
        rank: int = 0,
        world_size: int = 1,
        documents: Tensor | None = None,
    ) -> None:
        targets = _targets(stream)
        if targets < n_lanes:
            raise DataError(
                f"the evaluation data has {targets} target tokens, too few for "
                f"task.eval_batch_size={n_lanes} lanes"
            )
        length = -(-targets // n_lanes)
        rows = -(-n_lanes // world_size)
        lanes = range(rank * rows, (rank + 1) * rows)
        self._edges = [(lane * length, min((lane + 1) * length, targets)) for lane in lanes]
        self._stream, self._documents = stream, documents
        self._length, self._seq_len = length, min(seq_len, length)

    def __len__(self) -> int:
        return -(-self._length // self._seq_len)

    def __iter__(self) -> Iterator[CarriedBatch]:
        for step in range(len(self)):
            offset = step * self._seq_len
            width = min(self._seq_len, self._length - offset)
            starts = [min(first + offset, len(self._stream)) for first, _ in self._edges]
            inputs, targets = rows_of(self._stream, starts, width)
            documents = documents_of(self._documents, starts, width)
            for row, (start, (_, end)) in enumerate(zip(starts, self._edges, strict=True)):
                targets[row, max(0, end - start) :] = IGNORE_INDEX
            yield CarriedBatch(inputs, targets, step == 0, step + 1 < len(self), documents)


EvalLoader = EvalLanes | SlidingWindows | CarriedLanes


def eval_loader(
    stream: Tensor, *, kind: str, batch_size: int, stride: int, **shares: Any
) -> EvalLoader:
    """Return one of `EVALUATIONS`.

    Args:
        stream: Token ids `[N+1]`.
        kind: Which.
        batch_size: Sequences of a batch, or lanes, over all ranks.
        stride: Of sliding windows.
        shares: What all of them take.
    """
    if kind == "carried":
        return CarriedLanes(stream, n_lanes=batch_size, **shares)
    if kind == "sliding":
        return SlidingWindows(stream, batch_size=batch_size, stride=stride, **shares)
    return EvalLanes(stream, batch_size=batch_size, **shares)


def _targets(stream: Tensor) -> int:
    targets = len(stream) - 1
    if targets < 1:
        raise DataError("the evaluation data has no target token; two tokens are needed")
    return targets
