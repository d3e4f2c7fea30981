"""Stories one behind the other in the rows of a stream, as catbAbI lays them.

The next story goes to the row that is shortest so far, the first among equals; all rows are read
`seq_len` tokens at a time, across the ends of stories, until the longest is over. (The published
code fills a buffer a row up to some length, which comes to the same.)
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapreplace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX, CarriedBatch
from tasks.babi import Story
from tasks.draws import EPOCH_BATCHES, period_of, seeded
from tasks.position import TrainBatches
from tasks.ranks import rows_of_rank

PAD, EOS, QUESTION = "<pad>", "<eos>", "?"


class Encoded(NamedTuple):
    """The stories of a split as ids."""

    tokens: Tensor
    """`<eos>` and the words of every story, one story after the other, int32."""
    ends: list[int]
    """Where each ends."""
    tasks: Tensor
    """Task number of each story."""

    def lengths(self) -> list[int]:
        """Return the tokens of every story."""
        return [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]


def encode(stories: Sequence[Story], ids: Mapping[str, int]) -> Encoded:
    """Return the stories as ids.

    Raises:
        KeyError: A word has none.
    """
    eos = ids[EOS]
    tokens = [i for story in stories for i in (eos, *(ids[word] for word in story.words))]
    ends = list(accumulate(1 + len(story.words) for story in stories))
    return Encoded(
        torch.tensor(tokens, dtype=torch.int32), ends, torch.tensor([x.task for x in stories])
    )


def assigned(lengths: Sequence[int], order: Sequence[int], *, n_rows: int) -> list[list[int]]:
    """Return which stories every row reads.

    Args:
        lengths: Tokens of every story.
        order: Numbers of the stories as they come.
        n_rows: Rows over all ranks.
    """
    heap = [(0, row) for row in range(n_rows)]
    rows: list[list[int]] = [[] for _ in heap]
    for story in order:
        length, row = heap[0]
        rows[row].append(story)
        heapreplace(heap, (length + lengths[story], row))
    return rows


class StoryRows:
    """The batches of some rows, from the first token to the end of the longest of all rows.

    Args:
        stories: What is read.
        rows: Which stories every row reads, over all ranks.
        chosen: Which rows are this rank's; those beyond the last are empty.
        seq_len: Tokens of a batch.
        question: Id of the question mark, whose target is the answer.
        answers_only: Whether nothing else is a target.
    """

    def __init__(
        self,
        stories: Encoded,
        rows: Sequence[Sequence[int]],
        chosen: range,
        *,
        seq_len: int,
        question: int,
        answers_only: bool,
    ) -> None:
        self._stories, self._lengths, self._seq_len = stories, stories.lengths(), seq_len
        self._question, self._answers_only = question, answers_only
        self._longest = max(self._length(row) for row in rows)
        mine = [rows[i] if i < len(rows) else [] for i in chosen]
        shape = (len(mine), self._longest + 1)
        # <eos>, which begins every story, ends the last one too; then there are no targets.
        self._tokens = torch.full(shape, IGNORE_INDEX, dtype=torch.int32)
        self._tasks = torch.zeros(shape, dtype=torch.int32)
        for i, row in enumerate(mine):
            self._fill(i, row)

    def __len__(self) -> int:
        return -(-self._longest // self._seq_len)

    def batch(self, number: int, *, begins: bool, continues: bool) -> CarriedBatch:
        """Return the tokens at a place."""
        first = number * self._seq_len
        last = min(first + self._seq_len, self._longest)
        inputs, following = (self._tokens[:, first + i : last + i].long() for i in (0, 1))
        # Where a row is over, its last <eos> is no input any more.
        inputs = inputs.masked_fill(following == IGNORE_INDEX, 0)
        asked = inputs == self._question
        kinds = self._tasks[:, first:last].long().masked_fill(~asked, 0)
        targets = following.masked_fill(~asked, IGNORE_INDEX) if self._answers_only else following
        return CarriedBatch(inputs, targets, begins, continues, kinds=kinds)

    def _length(self, row: Sequence[int]) -> int:
        return sum(self._lengths[story] for story in row)

    def _fill(self, i: int, row: Sequence[int]) -> None:
        tokens, ends, tasks = self._stories
        if not row:
            return
        pieces = [tokens[ends[story] - self._lengths[story] : ends[story]] for story in row]
        length = self._length(row)
        self._tokens[i, :length] = torch.cat(pieces)
        self._tokens[i, length] = tokens[0]
        lengths = torch.tensor([len(piece) for piece in pieces])
        self._tasks[i, :length] = tasks[torch.tensor(row)].repeat_interleave(lengths).int()


MakeRows = Callable[[Sequence[Sequence[int]], range], StoryRows]
"""From what `assigned` returns and this rank's rows."""


class TrainStories(TrainBatches[CarriedBatch]):
    """Epochs without end, each of all stories in an order of its own; the state is carried on.

    Batches are counted through all epochs, which may differ in their number.

    Args:
        stories: What is read.
        make_rows: Makes the batches of an epoch.
        batch_size: Rows over all ranks.
        seq_len: Tokens of a batch.
        seed: Of the orders.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: As of `tasks.draws.TrainDraws`; where it begins again, so does the state.
        num_workers: As of `TrainBatches`.

    Raises:
        DataError: `batch_size` does not divide over the ranks.
    """

    def __init__(
        self,
        stories: Encoded,
        make_rows: MakeRows,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_limit: int | float = 1.0,
        num_workers: int = 0,
    ) -> None:
        mine = rows_of_rank(batch_size, rank=rank, world_size=world_size)
        self._lengths, self._make_rows, self._seed = stories.lengths(), make_rows, seed
        self._mine, self._batch_size = range(mine.start, mine.stop), batch_size
        self._ends: list[int] = []
        self._read: tuple[int, StoryRows] | None = None
        self._last = period_of(epoch_limit)
        super().__init__(
            self._segment,
            n_batches=EPOCH_BATCHES,
            period=self._last,
            meaning={"batch_size": batch_size, "seq_len": seq_len, "seed": seed},
            num_workers=num_workers,
        )
        self._steps = seq_len

    def _segment(self, number: int) -> CarriedBatch:
        while not self._ends or self._ends[-1] <= number:
            rows = self._rows(len(self._ends))
            longest = max(sum(self._lengths[story] for story in row) for row in rows)
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before - (-longest // self._steps))
        epoch = bisect_right(self._ends, number)
        if self._read is None or self._read[0] != epoch:
            self._read = epoch, self._make_rows(self._rows(epoch), self._mine)
        first = self._ends[epoch - 1] if epoch else 0
        continues = number + 1 != self._last
        return self._read[1].batch(number - first, begins=number == 0, continues=continues)

    def _rows(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(len(self._lengths), generator=seeded("order", self._seed, epoch))
        return assigned(self._lengths, order.tolist(), n_rows=self._batch_size)


class EvalStories:
    """All stories once, in their order, rows from an empty memory each.

    Args:
        stories: What is read.
        make_rows: Makes the batches.
        n_rows: Over all ranks, of which some may have empty rows alone.
        rank: This process among `world_size`.
        world_size: Number of processes.
    """

    def __init__(
        self,
        stories: Encoded,
        make_rows: MakeRows,
        *,
        n_rows: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        order = range(len(stories.ends))
        per_rank = -(-n_rows // world_size)
        rows = assigned(stories.lengths(), order, n_rows=n_rows)
        self._rows = make_rows(rows, range(rank * per_rank, (rank + 1) * per_rank))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[CarriedBatch]:
        for i in range(len(self)):
            yield self._rows.batch(i, begins=i == 0, continues=i + 1 < len(self))
