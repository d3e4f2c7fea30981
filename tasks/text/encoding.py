"""From lines to streams of ids, in bounded memory.

Large files are encoded once, into memory-mapped arrays in the cache.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fwlight.errors import one_line
from tasks.io.cache import ArrayWriter, cached_folder, read_array
from tasks.io.downloads import hash_of
from tasks.io.textfiles import Piece, existing_file, text_size
from tasks.text.corpora import SPLITS, Corpus, Pieces
from tasks.text.learning import Choice, learner, restored
from tasks.text.tokens import Tokens

CACHED_FROM = 16 << 20
"""Bytes of text from which on it is kept encoded; less is encoded in a second or two."""
_CHUNK = 1 << 20
_FORMAT = 3  # to be raised when the same text is encoded otherwise


class Encoded(NamedTuple):
    """A corpus as ids."""

    tokens: Tokens
    streams: dict[str, Tensor]
    """Token ids of each split, int32."""
    fingerprint: str
    """SHA-256 of the encoded splits."""
    n_bytes: dict[str, int]
    """Bytes of each split's text in UTF-8, one for a line's end."""


def encode(corpus: Corpus, choice: Choice) -> Encoded:
    """Return the corpus encoded with the vocabulary of its training split.

    Args:
        corpus: The text.
        choice: What its tokens are.

    Raises:
        DataError: the text, or a tokenizer.json, cannot be used.
        StorageError: there is no place for the cache.
    """
    if sum(map(text_size, corpus.files)) < CACHED_FROM:
        sizes, learning = Counter(), learner(choice, corpus)
        train = np.concatenate([*learning.numbers(_counted(corpus, "train", sizes))])
        tokens, table = learning.learnt()
        streams = {"train": train if table is None else table[train]}
        for split in SPLITS[1:]:
            streams[split] = np.concatenate([*tokens.ids(_counted(corpus, split, sizes))])
        tensors = {split: torch.from_numpy(streams[split]) for split in SPLITS}
        return Encoded(tokens, tensors, _fingerprint(streams), sizes)
    options = {"min_count": choice.min_count, "max_vocab_size": choice.max_vocab_size}
    options |= {"tokenizer": choice.kind, "vocab_size": choice.vocab_size}
    key = hashlib.sha256(json.dumps([_FORMAT, corpus.name, options]).encode())
    others = [existing_file(choice.tokenizer)] if choice.kind == "FILE" else []
    for file in (*corpus.files, *others):
        key.update(hash_of(file).encode())

    def build(folder: Path) -> None:
        files = one_line(", ".join(map(str, dict.fromkeys(corpus.files))))
        print(f"encoding {files}, once", file=sys.stderr, flush=True)
        _build(corpus, folder, choice)

    folder = cached_folder("text", key=key.hexdigest()[:24], build=build)
    made = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    streams = {split: read_array(folder / f"{split}.npy") for split in SPLITS}
    tokens = restored(made, spaced=corpus.spaced)
    return Encoded(tokens, streams, made["fingerprint"], made["n_bytes"])


def encode_split(pieces: Pieces, tokens: Tokens) -> tuple[Tensor, int]:
    """Return the ids `[n]` of one split, int32, in tokens that are there already, and its bytes."""
    sizes: Counter[str] = Counter()
    ids = np.concatenate([*tokens.ids(_counting(pieces(), "", sizes))])
    return torch.from_numpy(ids), sizes[""]


def stream_hash(stream: Tensor) -> str:
    """Return the SHA-256 of one split's ids."""
    return hashlib.sha256(stream.numpy().astype("<i4").tobytes()).hexdigest()


def _counted(corpus: Corpus, split: str, sizes: Counter[str]) -> Iterator[Piece]:
    return _counting(corpus.splits[split](), split, sizes)


def _counting(pieces: Iterator[Piece], split: str, sizes: Counter[str]) -> Iterator[Piece]:
    """Hand pieces on, and add up their bytes."""
    for piece in pieces:
        text = piece.whole
        sizes[split] += len(text) if text.isascii() else len(text.encode())
        yield piece


def _build(corpus: Corpus, folder: Path, choice: Choice) -> None:
    """Write `<split>.npy` and tokens.json."""
    sizes: Counter[str] = Counter()
    learning = learner(choice, corpus)
    with ArrayWriter(folder / "train.npy", np.int32) as writer:
        for numbers in learning.numbers(_counted(corpus, "train", sizes)):
            writer.append(numbers)
    tokens, table = learning.learnt()
    if table is not None:
        train = np.load(folder / "train.npy", mmap_mode="r+")
        for start in range(0, len(train), _CHUNK):
            train[start : start + _CHUNK] = table[train[start : start + _CHUNK]]
        train.flush()
    for split in SPLITS[1:]:
        with ArrayWriter(folder / f"{split}.npy", np.int32) as writer:
            for ids in tokens.ids(_counted(corpus, split, sizes)):
                writer.append(ids)
    streams = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    made = {"tokens": tokens.kind, **tokens.state_dict()}
    made |= {"fingerprint": _fingerprint(streams), "n_bytes": sizes}
    (folder / "tokens.json").write_text(json.dumps(made), encoding="utf-8")


def _fingerprint(streams: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        stream = streams[split]
        digest.update(len(stream).to_bytes(8, "little"))
        for start in range(0, len(stream), _CHUNK):
            digest.update(stream[start : start + _CHUNK].astype("<i4").data)
    return digest.hexdigest()
