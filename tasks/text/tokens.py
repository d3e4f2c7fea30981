"""What a language model reads a text as: words, characters or bytes; subwords see `byte_pairs`.

Each kind turns pieces of text, a line with its end or a part of a long one, into ids, and ids into
text for reading.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from fwlight.types import DataError
from tasks.io.textfiles import Piece
from tasks.text.tokenizer import EOS, UNK, detokenize, split_tokens, tokenize
from tasks.text.vocabulary import Vocabulary

TOKENIZERS = ("words", "bytes", "chars", "bpe")
"""What `task.tokenizer` may be, beside the path of a tokenizer.json."""
CHUNK = 1 << 20
"""Tokens or characters that are encoded at a time."""
N_CHARACTERS = 0x110000
"""Code points of Unicode."""


class Tokens(ABC):
    """One way of reading a text."""

    kind: ClassVar[str]
    """As `task.tokenizer`; FILE where that is a path."""
    of_a_word: ClassVar[int] = 1
    """How many tokens a word of English has, or a few more."""
    unk_id: int | None = None
    """What stands for text without a token; None where there is no such text."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many ids there are."""

    @abstractmethod
    def ids(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Yield the ids of a text `[n]`, int32, a part at a time."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, as far as they tell it."""

    @abstractmethod
    def line_ends(self) -> frozenset[int]:
        """Return the ids of what ends a line."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return `vocabulary`, texts, or `tokenizer`, one text, from which to make it again."""

    @property
    def hash(self) -> str:
        """SHA-256 of the vocabulary, as checkpoints have it."""
        state = self.state_dict()
        text = state["tokenizer"] if "tokenizer" in state else "\n".join(state["vocabulary"])
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, whose last line goes on."""
        *lines, last = text.encode("utf-8", "replace").decode().split("\n")
        pieces = [*(Piece(line, True) for line in lines), Piece(last, False)]
        return list(chain.from_iterable(ids.tolist() for ids in self.ids(pieces)))


class Words(Tokens):
    """Words of a vocabulary; `<eos>` ends every line, and other words are `<unk>`.

    Args:
        vocabulary: The words.
        spaced: Whether texts are token files, whose words stand between spaces; else they are prose
            and cut by `tasks.text.tokenizer.tokenize`.
    """

    kind = "words"

    def __init__(self, vocabulary: Vocabulary, *, spaced: bool) -> None:
        self.vocabulary, self.spaced = vocabulary, spaced
        self.unk_id = vocabulary.unk_id

    def __len__(self) -> int:
        return len(self.vocabulary)

    def ids(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Return the ids of a text."""
        runs = runs_of_words(pieces, spaced=self.spaced)
        return in_chunks(map(self.vocabulary.encode, runs))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, cut as the source's own text; a line break is `<eos>`.

        Where a prompt for a model of token files is not written as those are, its unknown words are
        cut as prose.
        """
        first, *rest = map(self._words, text.split("\n"))
        return self.vocabulary.encode([*first, *chain.from_iterable([EOS, *line] for line in rest)])

    def decode(self, ids: Iterable[int]) -> str:
        """Return readable text; `<eos>` becomes a line break."""
        return detokenize(self.vocabulary.decode(ids))

    def line_ends(self) -> frozenset[int]:
        """Return the id of `<eos>`."""
        return frozenset([self.vocabulary.eos_id])

    def state_dict(self) -> dict[str, Any]:
        """Return the words."""
        return {"vocabulary": list(self.vocabulary.words)}

    def _words(self, line: str) -> list[str]:
        if not self.spaced:
            return tokenize(line)
        known = self.vocabulary.ids
        words = [[word] if word in known else tokenize(word) for word in split_tokens(line)]
        return list(chain.from_iterable(words))


class Characters(Tokens):
    """Unicode's characters as far as the training split has them; others are `<unk>`.

    Args:
        characters: `<unk>`, then each once; the place is the id.

    Raises:
        DataError: one twice, `<unk>` missing, or something longer.
    """

    kind = "chars"
    of_a_word = 6
    unk_id = 0

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = list(characters)
        first, *others = self.characters or [""]
        if first != UNK or any(len(x) != 1 for x in others) or len({*others}) < len(others):
            raise DataError("the vocabulary is not <unk> and characters, each of them once")
        self._of_code = np.zeros(N_CHARACTERS, np.int32)
        self._of_code[[ord(x) for x in others]] = np.arange(1, len(self.characters))

    def __len__(self) -> int:
        return len(self.characters)

    def ids(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Yield the ids of a text."""
        for text in joined(pieces):
            yield self._of_code[code_points(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text."""
        return "".join(self.characters[index] for index in ids)

    def line_ends(self) -> frozenset[int]:
        """Return the id of the line feed."""
        return frozenset(i for i, character in enumerate(self.characters) if character == "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the characters."""
        return {"vocabulary": list(self.characters)}


class Bytes(Tokens):
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    of_a_word = 6

    def __len__(self) -> int:
        return 256

    def ids(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Yield the bytes of a text."""
        for text in joined(pieces):
            yield np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")

    def line_ends(self) -> frozenset[int]:
        """Return the line feed."""
        return frozenset(b"\n")

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no other such vocabulary."""
        return {"vocabulary": []}


def runs_of_words(pieces: Iterable[Piece], *, spaced: bool) -> Iterator[list[str]]:
    """Yield the words of a text, `<eos>` at the end of every line."""
    cut = split_tokens if spaced else tokenize
    for piece in pieces:
        yield [*cut(piece.text), EOS] if piece.ends_line else cut(piece.text)


def in_chunks(runs: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
    """Yield numbers as arrays `[n]`, int32, of about `CHUNK`."""
    chunk = array("i")
    for run in runs:
        chunk.extend(run)
        if len(chunk) >= CHUNK:
            yield np.frombuffer(chunk, np.int32)
            chunk = array("i")
    yield np.frombuffer(chunk, np.int32)


def joined(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yield a text, about `CHUNK` characters at a time."""
    parts, length = [], 0
    for piece in pieces:
        parts.append(piece.whole)
        length += len(parts[-1])
        if length >= CHUNK:
            yield "".join(parts)
            parts, length = [], 0
    yield "".join(parts)


def code_points(text: str) -> np.ndarray:
    """Return the number of every character `[n]`."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
