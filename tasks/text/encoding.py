"""From runs of words to streams of ids, in one pass over the text and bounded memory.

The training split's words are numbered as they appear and counted as numbers; when the vocabulary
is known the numbers are exchanged for its ids. Large files are encoded once, into memory-mapped
arrays in the cache.
"""

import hashlib
import json
import sys
from array import array
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
from tasks.io.textfiles import text_size
from tasks.text.corpora import SPLITS, Corpus, Words
from tasks.text.vocabulary import Vocabulary

CACHED_FROM = 16 << 20
"""Bytes of text from which on it is kept encoded; less is encoded in a second or two."""
_CHUNK = 1 << 20
_FORMAT = 2  # to be raised when the same text is encoded otherwise


class Encoded(NamedTuple):
    """A corpus as ids."""

    vocabulary: Vocabulary
    streams: dict[str, Tensor]
    """Token ids of each split, int32."""
    fingerprint: str
    """SHA-256 of the encoded splits."""


def encode(corpus: Corpus, *, min_count: int, max_vocab_size: int | None) -> Encoded:
    """Return the corpus encoded with the vocabulary of its training split.

    Args:
        corpus: The text.
        min_count: Rarer words become `<unk>`.
        max_vocab_size: Most entries of the vocabulary; None for no limit.

    Raises:
        DataError: the text cannot be used.
        StorageError: there is no place for the cache.
    """
    limits = {"min_count": min_count, "max_vocab_size": max_vocab_size}
    if sum(map(text_size, corpus.files)) < CACHED_FROM:
        numbering = _Numbering()
        train = _joined(list(_numbered(corpus.splits["train"], numbering)))
        vocabulary = numbering.vocabulary(**limits)
        streams = {"train": numbering.table(vocabulary)[train]}
        for split in SPLITS[1:]:
            streams[split] = _joined(list(_ids(corpus.splits[split], vocabulary)))
        tensors = {split: torch.from_numpy(streams[split]) for split in SPLITS}
        return Encoded(vocabulary, tensors, _fingerprint(streams))
    key = hashlib.sha256(json.dumps([_FORMAT, corpus.name, limits]).encode())
    for file in corpus.files:
        key.update(hash_of(file).encode())

    def build(folder: Path) -> None:
        files = one_line(", ".join(map(str, corpus.files)))
        print(f"encoding {files}, once", file=sys.stderr, flush=True)
        _build(corpus, folder, **limits)

    folder = cached_folder("text", key=key.hexdigest()[:24], build=build)
    words = (folder / "words.txt").read_text(encoding="utf-8").split("\n")
    streams = {split: read_array(folder / f"{split}.npy") for split in SPLITS}
    return Encoded(Vocabulary(words), streams, (folder / "fingerprint.txt").read_text())


def encode_split(words: Words, vocabulary: Vocabulary) -> Tensor:
    """Return the ids `[n]` of one split's words, int32, in a vocabulary that is there already."""
    return torch.from_numpy(_joined(list(_ids(words, vocabulary))))


def stream_hash(stream: Tensor) -> str:
    """Return the SHA-256 of one split's ids."""
    return hashlib.sha256(stream.numpy().astype("<i4").tobytes()).hexdigest()


class _Numbering(dict[str, int]):
    """Numbers of words in the order in which they are first asked for, and how often they came."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(0, np.int64)

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def count(self, numbers: np.ndarray) -> None:
        counts = np.bincount(numbers, minlength=len(self))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def vocabulary(self, *, min_count: int, max_vocab_size: int | None) -> Vocabulary:
        counts = Counter(dict(zip(self, self.counts.tolist(), strict=True)))
        return Vocabulary.from_counts(counts, min_count=min_count, max_size=max_vocab_size)

    def table(self, vocabulary: Vocabulary) -> np.ndarray:
        """Return the vocabulary's id of every number."""
        return np.array(vocabulary.encode(self), np.int32)


def _numbered(words: Words, numbering: _Numbering) -> Iterator[np.ndarray]:
    """Yield the numbers of a split's words in chunks, counting them."""
    chunk = array("i")
    for run in words():
        chunk.extend([numbering[word] for word in run])
        if len(chunk) >= _CHUNK:
            numbers = np.frombuffer(chunk, np.int32)
            numbering.count(numbers)
            yield numbers
            chunk = array("i")
    numbers = np.frombuffer(chunk, np.int32)
    numbering.count(numbers)
    yield numbers


def _ids(words: Words, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    chunk = array("i")
    for run in words():
        chunk.extend(vocabulary.encode(run))
        if len(chunk) >= _CHUNK:
            yield np.frombuffer(chunk, np.int32)
            chunk = array("i")
    yield np.frombuffer(chunk, np.int32)


def _build(corpus: Corpus, folder: Path, *, min_count: int, max_vocab_size: int | None) -> None:
    """Write `<split>.npy`, words.txt and fingerprint.txt."""
    numbering = _Numbering()
    with ArrayWriter(folder / "train.npy", np.int32) as writer:
        for numbers in _numbered(corpus.splits["train"], numbering):
            writer.append(numbers)
    vocabulary = numbering.vocabulary(min_count=min_count, max_vocab_size=max_vocab_size)
    table, train = numbering.table(vocabulary), np.load(folder / "train.npy", mmap_mode="r+")
    for start in range(0, len(train), _CHUNK):
        train[start : start + _CHUNK] = table[train[start : start + _CHUNK]]
    train.flush()
    for split in SPLITS[1:]:
        with ArrayWriter(folder / f"{split}.npy", np.int32) as writer:
            for ids in _ids(corpus.splits[split], vocabulary):
                writer.append(ids)
    streams = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    (folder / "words.txt").write_text("\n".join(vocabulary.words), encoding="utf-8", newline="\n")
    (folder / "fingerprint.txt").write_text(_fingerprint(streams), encoding="utf-8")


def _joined(chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(chunks)


def _fingerprint(streams: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        stream = streams[split]
        digest.update(len(stream).to_bytes(8, "little"))
        for start in range(0, len(stream), _CHUNK):
            digest.update(stream[start : start + _CHUNK].astype("<i4").data)
    return digest.hexdigest()
