"""Batches of sentence pairs: as many as fit into a number of tokens, alike in length."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX, PackedPairs, TranslationBatch
from tasks.draws import seeded
from tasks.position import TrainBatches, refuse_other_data

_ROW_TOKENS = 512
"""Of a row of packed pairs: long enough that little is filled up, short for a quadratic mask."""


@dataclass(frozen=True)
class EncodedPairs:
    """Sentence pairs as one row of ids for each language; may be memory-mapped."""

    source: Tensor
    """Ids of all source sentences `[...]`, int32."""
    source_ends: Tensor
    """Where each begins and ends `[n + 1]`, int64."""
    target: Tensor
    """Ids of all target sentences."""
    target_ends: Tensor
    """Likewise."""

    def __len__(self) -> int:
        return len(self.source_ends) - 1

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of every source and every target `[n]`, the end token included."""
        return self.source_ends.diff() + 1, self.target_ends.diff() + 1

    def batch(self, rows: Tensor, *, pad: int, bos: int, eos: int) -> TranslationBatch:
        """Return some pairs, padded; -1 stands for a pair without source, targets or content."""
        sources, targets = [], []
        for row in rows.tolist():
            real = row >= 0
            sources.append(_cut(self.source, self.source_ends, row) if real else [])
            targets.append(_cut(self.target, self.target_ends, row) if real else None)
        return TranslationBatch(
            _padded([[*ids, eos] for ids in sources], pad),
            _padded([[bos, *(ids or [])] for ids in targets], pad),
            _padded([[] if ids is None else [*ids, eos] for ids in targets], IGNORE_INDEX),
            rows,
        )

    def packed(self, rows: Tensor, *, row_tokens: int, pad: int, bos: int, eos: int) -> PackedPairs:
        """Return some pairs one behind the other in rows of about so many tokens on a side.

        A pair stands in one row whole. Every row is filled up by a pair of `pad`.
        """
        sides = [
            (_cut(self.source, self.source_ends, row), _cut(self.target, self.target_ends, row))
            for row in rows.tolist()
        ]
        laid_out: list[list[tuple[list[int], list[int]]]] = [[]]
        lengths = [0, 0]
        for pair in sides:
            more = [n + len(side) + 1 for n, side in zip(lengths, pair, strict=True)]
            if max(more) > row_tokens and laid_out[-1]:
                laid_out.append([])
                more = [len(side) + 1 for side in pair]
            laid_out[-1].append(pair)
            lengths = more
        sources = [[[*source, eos] for source, _ in row] for row in laid_out]
        inputs = [[[bos, *target] for _, target in row] for row in laid_out]
        targets = [[[*target, eos] for _, target in row] for row in laid_out]
        return PackedPairs(
            *_in_rows(sources, pad), *_in_rows(inputs, pad), _in_rows(targets, IGNORE_INDEX)[0]
        )


def _in_rows(rows: list[list[list[int]]], value: int) -> tuple[Tensor, Tensor]:
    """Return pieces one behind the other, filled up with at least one value, and their starts."""
    ids = _padded([[*chain.from_iterable(row), value] for row in rows], value)
    starts = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        starts[number, [0, *accumulate(map(len, row))]] = True
    return ids, starts


def _cut(ids: Tensor, ends: Tensor, row: int) -> list[int]:
    return ids[int(ends[row]) : int(ends[row + 1])].tolist()


def _padded(rows: list[list[int]], value: int) -> Tensor:
    length = max(1, *map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def cut_batches(
    pairs: EncodedPairs, *, batch_tokens: int, order: torch.Generator | None = None
) -> list[Tensor]:
    """Sort pairs by length and cut them into batches; none has more tokens on a side, padded.

    Args:
        pairs: The pairs.
        batch_tokens: Rows times the longest row of a batch is at most this on either side; a longer
            pair is a batch of its own.
        order: Decides among pairs of the same lengths.

    Returns:
        The numbers of the pairs in each batch, from short ones to long ones.
    """
    source, target = pairs.lengths()
    longer = torch.maximum(source, target)
    rows = (
        torch.arange(len(pairs)) if order is None else torch.randperm(len(pairs), generator=order)
    )
    # One number that sorts by the longer side, then by the target.
    key = longer * (int(longer.max()) + 1) + target
    rows = rows[key[rows].sort(stable=True).indices]
    lengths = longer[rows].tolist()
    batches, start = [], 0
    while start < len(rows):
        end = start + 1
        # A batch's last row is its longest.
        while end < len(rows) and (end + 1 - start) * lengths[end] <= batch_tokens:
            end += 1
        batches.append(rows[start:end])
        start = end
    return batches


def cut_packed(pairs: EncodedPairs, *, batch_tokens: int, order: torch.Generator) -> list[Tensor]:
    """Shuffle pairs and cut them into batches, whatever their lengths.

    Args:
        pairs: The pairs.
        batch_tokens: Tokens of a batch on either side are at most this; a longer pair is a batch of
            its own.
        order: Shuffles.

    Returns:
        The numbers of the pairs in each batch.
    """
    rows = torch.randperm(len(pairs), generator=order)
    sides = [lengths[rows].cumsum(0) for lengths in pairs.lengths()]
    batches, start = [], 0
    while start < len(rows):
        before = [side[start - 1] if start else 0 for side in sides]
        ends = [
            torch.searchsorted(side, batch_tokens + so_far, right=True)
            for side, so_far in zip(sides, before, strict=True)
        ]
        end = max(int(min(ends)), start + 1)
        batches.append(rows[start:end])
        start = end
    return batches


class TrainPairs(TrainBatches[TranslationBatch | PackedPairs]):
    """Batches of the training split in an order that is a function of seed and epoch.

    Every epoch takes each pair once. Rank r of W takes the rows r, r + W, ... of each batch, or
    where it has fewer rows than ranks one without targets.

    With `packing`, a batch holds pairs of any lengths, which each rank lays one behind the other;
    else such as are alike in length, one a row.

    Args:
        pairs: The pairs.
        batch_tokens: Most padded tokens of a batch on either side, over all ranks.
        seed: Of the order.
        special: The ids of padding, start and end, by the names of `EncodedPairs.batch`.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: Begin again, with the same, after so many batches (int) or such a share of them
            (float), as Lightning's `limit_train_batches` ends an epoch.
        packing: See above; `batch_tokens` then counts no padding.
        num_workers: As of `TrainBatches`.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        *,
        batch_tokens: int,
        seed: int,
        special: dict[str, int],
        packing: bool = False,
        rank: int = 0,
        world_size: int = 1,
        epoch_limit: int | float = 1.0,
        num_workers: int = 0,
    ) -> None:
        self._pairs, self._special = pairs, special
        self._batch_tokens, self._seed, self._packing = batch_tokens, seed, packing
        self._mine = slice(rank, None, world_size)
        self._epoch, self._batches = -1, []
        n = len(self._of_epoch(0))
        share = epoch_limit if isinstance(epoch_limit, int) else int(n * epoch_limit)
        self._epoch_batches = max(1, min(n, share))
        self._limited = self._epoch_batches < n
        super().__init__(
            self._numbered,
            n_batches=n,
            period=None,
            meaning={"batch_tokens": batch_tokens, "seed": seed}
            | ({"packing": 1} if packing else {}),
            num_workers=num_workers,
        )

    def state_dict(self) -> dict[str, int]:
        """The next batch, and what a batch means."""
        return {**super().state_dict(), "limit_train_batches": self._epoch_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the stored batch.

        Raises:
            DataError: it was counted with another `batch_tokens`, seed or length of an epoch.
        """
        super().load_state_dict(state)
        limit = {"limit_train_batches": self._epoch_batches}
        refuse_other_data(state, limit, section="trainer")

    def _numbered(self, number: int) -> TranslationBatch | PackedPairs:
        epoch, place = divmod(number, self._epoch_batches)
        rows = self._of_epoch(0 if self._limited else epoch)[place][self._mine]
        if self._packing:
            return self._pairs.packed(rows, row_tokens=_ROW_TOKENS, **self._special)
        return self._pairs.batch(rows if len(rows) else torch.tensor([-1]), **self._special)

    def _of_epoch(self, epoch: int) -> list[Tensor]:
        if epoch != self._epoch:
            order = seeded("pairs", self._seed, epoch)
            cut = cut_packed if self._packing else cut_batches
            batches = cut(self._pairs, batch_tokens=self._batch_tokens, order=order)
            shuffled = torch.randperm(len(batches), generator=order).tolist()
            self._epoch, self._batches = epoch, [batches[i] for i in shuffled]
        return self._batches


class EvalPairs:
    """Batches of an evaluation split, in which every pair is counted once.

    Rank r of W takes the rows r, r + W, ... of each batch; each process gets equally many batches.

    Args:
        pairs: The pairs.
        batch_tokens: Most padded tokens of a batch on either side, over all ranks.
        special: As of `TrainPairs`.
        rank: This process among `world_size`.
        world_size: Number of processes.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        *,
        batch_tokens: int,
        special: dict[str, int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._pairs, self._special = pairs, special
        self._batches: list[Any] = [
            batch[rank::world_size] if len(batch) > rank else torch.tensor([-1])
            for batch in cut_batches(pairs, batch_tokens=batch_tokens)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TranslationBatch]:
        for rows in self._batches:
            yield self._pairs.batch(rows, **self._special)
