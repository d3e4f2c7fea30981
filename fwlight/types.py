"""The contract between data and models: batches.

This is the only module of fwlight that `tasks/` imports.
"""

from typing import NamedTuple

from torch import Tensor

from fwlight.errors import DataError

__all__ = ["IGNORE_INDEX", "DataError", "LMBatch", "RetrievalBatch", "TranslationBatch"]

IGNORE_INDEX = -100
"""Target value of positions that no loss or metric counts."""


class LMBatch(NamedTuple):
    """One segment of every batch lane: the targets are the inputs one token later."""

    inputs: Tensor
    """Token ids `[B, T]`, int64."""
    targets: Tensor
    """Token ids `[B, T]`, int64; `IGNORE_INDEX` where nothing is to be predicted."""


class RetrievalBatch(NamedTuple):
    """Associations to write in order, and what to read afterwards."""

    keys: Tensor
    """Key ids `[B, T]`, int64."""
    values: Tensor
    """Value ids `[B, T]`, int64."""
    queries: Tensor
    """Key ids to read with `[B, N]`, int64."""
    targets: Tensor
    """Value ids `[B, N]`, int64; `IGNORE_INDEX` where a row has fewer queries."""


class TranslationBatch(NamedTuple):
    """Sentence pairs, padded at the end: the targets are the inputs one token later."""

    source: Tensor
    """Token ids `[B, S]`, int64; after the sentence's last token the padding id."""
    inputs: Tensor
    """Token ids `[B, T]` that the decoder reads, int64; padded in the same way."""
    targets: Tensor
    """Token ids `[B, T]`, int64; `IGNORE_INDEX` where nothing is to be predicted."""
