"""How often the bigrams of one text occur in another."""

from collections.abc import Mapping

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Tokens that are counted at a time."""


class TrainingBigrams:
    """Counts in the training split the bigrams of an evaluation's, once for each."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __call__(
        self, streams: Mapping[str, Tensor], split: str, base: int
    ) -> tuple[Tensor, Tensor, int] | None:
        """Return the bigrams of a split, how often training has each, and `base`.

        Args:
            streams: Token ids by split; without `train` nothing is known.
            split: Whose bigrams are counted.
            base: Number of token ids; a bigram is first * base + second, int64, rising.
        """
        if "train" not in streams:
            return None
        if split not in self._known:
            known = _codes(streams[split], base).unique()
            counts, train = torch.zeros_like(known), streams["train"]
            for start in range(0, len(train) if len(known) else 0, _CHUNK):
                codes = _codes(train[start : start + _CHUNK + 1], base)
                places = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
                counts += places[known[places] == codes].bincount(minlength=len(known))
            self._known[split] = known, counts, base
        return self._known[split]


def _codes(stream: Tensor, base: int) -> Tensor:
    return stream[:-1].long() * base + stream[1:]
