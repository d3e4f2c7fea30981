"""Sequences of words as rows of ids, for tasks that are drawn with Python's own generator."""

from collections.abc import Iterable, Sequence
from random import Random

import torch
from torch import Tensor

from tasks.draws import seeded


def python_draws(*parts: int | str) -> Random:
    """Return a generator of Python's own that is a function of all parts."""
    return Random(int(torch.randint(2**62, (), generator=seeded(*parts))))


def rows_of_words(sequences: Iterable[Sequence[str]], words: Sequence[str], fill: int) -> Tensor:
    """Return ids `[n, longest]`, `fill` after a row's end; an id is a word's place in `words`."""
    ids = {word: i for i, word in enumerate(words)}
    rows = [torch.tensor([ids[word] for word in sequence]) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
