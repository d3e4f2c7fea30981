"""Encoded sentence pairs as files of one folder: written once, memory-mapped ever after."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fwlight.types import DataError
from tasks.io.cache import ArrayWriter, read_array
from tasks.pairs import EncodedPairs
from tasks.text.bpe import UNK_ID, chunks, encode_all

_CHUNK = 10_000
_UNSEEN = 0.001
"""Share of unknown characters from which on one is told; of the training text any."""


def read_split(folder: Path, split: str) -> EncodedPairs:
    """Return what `write_split` wrote."""
    return EncodedPairs(
        *(
            read_array(folder / f"{split}.{side}{part}.npy")
            for side in ("source", "target")
            for part in ("", ".ends")
        )
    )


def write_split(
    folder: Path,
    split: str,
    pairs: Iterable[tuple[str, str]],
    *,
    tokenizer: Tokenizer,
    max_length: int | None = None,
    max_ratio: float | None = None,
) -> list[str]:
    """Encode the pairs of a split; return lines that say what was left out or is unknown.

    Args:
        folder: Where to.
        split: Its name.
        pairs: Those with a blank side are left out.
        tokenizer: The vocabulary.
        max_length: Pairs with more tokens on a side are left out.
        max_ratio: Likewise those with a side so many times as long as the other, of over 10 tokens.

    Raises:
        DataError: no pair is left.
    """
    with (
        ArrayWriter(folder / f"{split}.source.npy", np.int32) as source,
        ArrayWriter(folder / f"{split}.source.ends.npy", np.int64) as source_ends,
        ArrayWriter(folder / f"{split}.target.npy", np.int32) as target,
        ArrayWriter(folder / f"{split}.target.ends.npy", np.int64) as target_ends,
    ):
        for ends in (source_ends, target_ends):
            ends.append(np.zeros(1, np.int64))
        n = blank = long = unknown = characters = 0
        for chunk in chunks(pairs, _CHUNK):
            whole = list(filter(all, chunk))
            both = [encode_all(tokenizer, [pair[i] for pair in whole]) for i in (0, 1)]
            kept = [
                pair
                for pair in zip(*both, strict=True)
                if _fits(*map(len, pair), max_length=max_length, max_ratio=max_ratio)
            ]
            n += len(kept)
            blank += len(chunk) - len(whole)
            long += len(whole) - len(kept)
            unknown += sum(ids.count(UNK_ID) for side in both for ids in side)
            characters += sum(len(text) - text.count(" ") for pair in whole for text in pair)
            for ids, ends, side in (
                (source, source_ends, [pair[0] for pair in kept]),
                (target, target_ends, [pair[1] for pair in kept]),
            ):
                lengths = np.fromiter(map(len, side), np.int64, len(side))
                ends.append(ids.length + lengths.cumsum())
                ids.append(np.fromiter((i for row in side for i in row), np.int32))
    if n == 0:
        raise DataError(
            f"no pair of the {split} split is short enough for task.max_length={max_length} and "
            f"task.max_ratio={max_ratio}"
        )
    notes = []
    if blank or long:
        notes.append(
            f"{split}: {n:,} pairs; left out {blank:,} with a blank side and {long:,} too long or "
            "lopsided"
        )
    if unknown > (0 if split == "train" else _UNSEEN * characters):
        notes.append(
            f"warning: {unknown / characters:.2%} of the characters of the {split} split are "
            f"<unk>: not among the {tokenizer.get_vocab_size():,} entries of the vocabulary "
            "(task.vocab_size), which holds the most frequent of the training split's"
        )
    return notes


def _fits(
    source: int, target: int, *, max_length: int | None = None, max_ratio: float | None = None
) -> bool:
    longer, shorter = max(source, target), max(1, min(source, target))
    if max_length is not None and longer > max_length:
        return False
    return max_ratio is None or longer <= max(10, max_ratio * shorter)
