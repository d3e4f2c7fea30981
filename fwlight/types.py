"""The contract between data and models: batches.

This is the only module of fwlight that `tasks/` imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fwlight.errors import DataError

if TYPE_CHECKING:  # files are checked before torch is imported
    from torch import Tensor

__all__ = [
    "IGNORE_INDEX",
    "CarriedBatch",
    "DataError",
    "EpisodeBatch",
    "ImageBatch",
    "LMBatch",
    "PackedBatch",
    "PackedPairs",
    "RetrievalBatch",
    "Sequences",
    "TranslationBatch",
]

IGNORE_INDEX = -100
"""Target value of positions that no loss or metric counts."""


class LMBatch(NamedTuple):
    """One segment of every batch lane: the targets are the inputs one token later."""

    inputs: Tensor
    """Token ids `[B, T]`, int64."""
    targets: Tensor
    """Token ids `[B, T]`, int64; `IGNORE_INDEX` where nothing is to be predicted."""


class PackedBatch(NamedTuple):
    """An `LMBatch` whose rows hold parts of several documents."""

    inputs: Tensor
    """As in `LMBatch`."""
    targets: Tensor
    """As in `LMBatch`."""
    documents: Tensor
    """True `[B, T]` where an input is the first of a document that must not see what was before."""


class CarriedBatch(NamedTuple):
    """An `LMBatch` whose rows may go on from those of the last batch, or the next from these."""

    inputs: Tensor
    """As in `LMBatch`."""
    targets: Tensor
    """As in `LMBatch`."""
    begins: bool
    """Whether every row starts from an empty memory; else from where it ended in the last batch."""
    continues: bool
    """Whether the next batch goes on from these rows."""
    documents: Tensor | None = None
    """As in `PackedBatch`."""
    kinds: Tensor | None = None
    """Kind of the question at each position `[B, T]`, int64, from 1 on; 0 where there is none."""
    rate: float = 1.0
    """Factor on the learning rate of a training batch."""


class ImageBatch(NamedTuple):
    """Images and their classes."""

    images: Tensor
    """Pixels `[B, C, H, W]`, uint8: 255 is white."""
    targets: Tensor
    """Number of each image's class `[B]`, int64; `IGNORE_INDEX` where a row only fills a batch."""


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


class EpisodeBatch(NamedTuple):
    """Whole episodes of reinforcement learning, with every random number that they need."""

    worlds: Tensor
    """What tells environments apart `[B, ...]`."""
    draws: Tensor
    """Uniform numbers in [0, 1) `[B, T + 1, D]`, float64: what an environment takes for its
    beginning and for each of T steps."""
    choices: Tensor
    """Uniform numbers in [0, 1) `[B, T]`, float64, with which actions are drawn."""


class TranslationBatch(NamedTuple):
    """Sentence pairs, padded at the end: the targets are the inputs one token later."""

    source: Tensor
    """Token ids `[B, S]`, int64; after the sentence's last token the padding id."""
    inputs: Tensor
    """Token ids `[B, T]` that the decoder reads, int64; padded in the same way."""
    targets: Tensor
    """Token ids `[B, T]`, int64; `IGNORE_INDEX` where nothing is to be predicted."""
    numbers: Tensor
    """Number of each pair in its split `[B]`, int64; -1 where a row only fills a batch."""


class PackedPairs(NamedTuple):
    """Sentence pairs one behind the other in rows; the n-th target is of the n-th source.

    What fills a row up, at least one token on both sides, is a pair that nothing is asked of.
    """

    source: Tensor
    """Token ids `[B, S]`, int64."""
    source_starts: Tensor
    """True `[B, S]` at the first token of every source."""
    inputs: Tensor
    """Token ids `[B, T]` that the decoder reads, int64."""
    input_starts: Tensor
    """True `[B, T]` at the first token of every target."""
    targets: Tensor
    """Token ids `[B, T]`, int64; `IGNORE_INDEX` where nothing is to be predicted."""


class Sequences(NamedTuple):
    """What the layers of a stack write of a batch, and what reads it, for diagnostics."""

    tokens: Tensor
    """Ids `[B, T]` of what is written, int64."""
    padding_mask: Tensor | None = None
    """True `[B, T]` where that is padding."""
    query_mask: Tensor | None = None
    """True `[B, N]` where a query is padding."""
