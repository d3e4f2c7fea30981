"""Counts of n-grams as sorted arrays of integer keys."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class NGramTable:
    """How often each word followed each context of `order - 1` words.

    An n-gram w_1 .. w_n is the number w_1 V^(n-1) + ... + w_n, its context that number divided
    by V; the empty context is 0, one that reaches before the start is negative and never found.
    """

    order: int
    vocab_size: int
    grams: Ids
    """Distinct n-grams, rising."""
    counts: Floats
    """Their counts, all positive."""
    _contexts: Ids = field(init=False)
    _first: Ids = field(init=False)
    _totals: Floats = field(init=False)

    def __post_init__(self) -> None:
        if self.vocab_size**self.order > np.iinfo(np.int64).max:
            raise ValueError(f"{self.vocab_size} words are too many for {self.order}-grams")
        self._contexts, self._first = np.unique(self.grams // self.vocab_size, return_index=True)
        self._totals = self.sum_per_context(self.counts)

    @classmethod
    def count(cls, stream: Ids, order: int, vocab_size: int) -> "NGramTable":
        """All n-grams of a stream."""
        windows = len(stream) - order + 1
        keys = np.zeros(max(windows, 0), dtype=np.int64)
        for offset in range(order if windows > 0 else 0):
            keys = keys * vocab_size + stream[offset : offset + windows]
        grams, counts = np.unique(keys, return_counts=True)
        return cls(order, vocab_size, grams, counts.astype(np.float64))

    def context(self, history: Ids) -> Ids:
        """Contexts of this order from the last words of `history` `[N, at least order-1]`."""
        key = np.zeros(len(history), dtype=np.int64)
        for column in range(history.shape[1] - self.order + 1, history.shape[1]):
            key = key * self.vocab_size + history[:, column]
        return key

    def count_of(self, context: Ids, words: Ids) -> Floats:
        """Counts of the words after the contexts."""
        return _find(self.grams, self.counts, context * self.vocab_size + words)

    def total(self, context: Ids) -> Floats:
        """Counts of all words after the contexts."""
        return self.per_context(self._totals, context)

    def per_context(self, values: Floats, context: Ids) -> Floats:
        """Of one value for every context seen, those of `context`; 0 for the others."""
        return _find(self._contexts, values, context)

    def sum_per_context(self, values: Floats) -> Floats:
        """Sums over the n-grams of each context."""
        return np.add.reduceat(values, self._first) if len(values) else np.zeros(0)


def distinct_suffixes(table: NGramTable) -> NGramTable:
    """N-grams one word shorter, counted by the distinct words seen before them."""
    size = table.vocab_size ** (table.order - 1)
    grams, counts = np.unique(table.grams % size, return_counts=True)
    return NGramTable(table.order - 1, table.vocab_size, grams, counts.astype(np.float64))


def histories(stream: Ids, order: int) -> tuple[Ids, Ids]:
    """The targets of a stream `[N+1]` and the words before each: `[N, order-1]` and `[N]`.

    The first token is a history only; -1 stands for words before it.
    """
    padded = np.concatenate([np.full(max(order - 2, 0), -1), stream])
    targets = len(stream) - 1
    columns = [padded[i : i + targets] for i in range(order - 1)]
    history = np.stack(columns, axis=1) if columns else np.zeros((targets, 0), dtype=np.int64)
    return history, stream[1:]


def _find(keys: Ids, values: Floats, wanted: Ids) -> Floats:
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
