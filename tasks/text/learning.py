"""From a training split to its tokens and their ids, in as few passes over the text as it takes.

Words and characters are numbered as they come and counted as numbers; when the vocabulary is known
the numbers are exchanged for its ids. Byte pairs are learnt in a pass of their own.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.io.textfiles import Piece
from tasks.text.corpora import Corpus
from tasks.text.tokenizer import UNK
from tasks.text.tokens import (
    N_CHARACTERS,
    TOKENIZERS,
    Bytes,
    Characters,
    Tokens,
    Words,
    code_points,
    in_chunks,
    joined,
    runs_of_words,
)
from tasks.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Choice:
    """How a text is to be read: the keys of `task` that say so."""

    tokenizer: str = "words"
    """One of `TOKENIZERS`, or the path of a tokenizer.json."""
    min_count: int = 1
    """Rarer words or characters are left to `<unk>`."""
    max_vocab_size: int | None = None
    """Most entries of a vocabulary of words or characters, `<unk>` and `<eos>` included."""
    vocab_size: int = 4000
    """Most entries of one of byte pairs."""

    @property
    def kind(self) -> str:
        """The kind of tokens, as of `Tokens`."""
        return self.tokenizer if self.tokenizer in TOKENIZERS else "FILE"


class Learner(ABC):
    """Reads a training split once and tells its tokens then."""

    @abstractmethod
    def numbers(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Yield a number for every token `[n]`, int32, a part at a time."""

    @abstractmethod
    def learnt(self) -> tuple[Tokens, np.ndarray | None]:
        """Return the tokens, and their id of every number; None where numbers are ids."""


def learner(choice: Choice, corpus: Corpus) -> Learner:
    """Return the learner of a choice.

    Raises:
        DataError: a tokenizer.json, or the text that byte pairs are learnt on, cannot be used.
    """
    if choice.kind == "words":
        return _WordCounts(choice, spaced=corpus.spaced)
    if choice.kind == "chars":
        return _CharacterCounts(choice)
    if choice.kind == "bytes":
        return _Known(Bytes())
    # Only they need the library.
    from tasks.text.byte_pairs import learn_byte_pairs, read_tokenizer

    if choice.kind == "bpe":
        return _Known(learn_byte_pairs(corpus.splits["train"](), vocab_size=choice.vocab_size))
    return _Known(read_tokenizer(choice.tokenizer))


def restored(state: dict[str, Any], *, spaced: bool) -> Tokens:
    """Return the tokens of what `Tokens.state_dict` gave, beside it their kind as `tokens`.

    Raises:
        DataError: it is no such thing.
    """
    kind = state.get("tokens", "words")  # earlier versions had no others
    if kind == "words":
        return Words(Vocabulary(state["vocabulary"]), spaced=spaced)
    if kind == "chars":
        return Characters(state["vocabulary"])
    if kind == "bytes":
        return Bytes()
    from tasks.text.byte_pairs import BytePairs, Subwords

    return (BytePairs if kind == "bpe" else Subwords)(state["tokenizer"])


class _Known(Learner):
    """Tokens that are there already."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def numbers(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        return self._tokens.ids(pieces)

    def learnt(self) -> tuple[Tokens, np.ndarray | None]:
        return self._tokens, None


class _WordCounts(Learner, dict[str, int]):
    """Numbers of words in the order in which they are first asked for, and how often they came."""

    def __init__(self, choice: Choice, *, spaced: bool) -> None:
        super().__init__()
        self._choice, self._spaced = choice, spaced
        self._counts = np.zeros(0, np.int64)

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def numbers(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        runs = runs_of_words(pieces, spaced=self._spaced)
        for numbers in in_chunks([self[word] for word in run] for run in runs):
            counts = np.bincount(numbers, minlength=len(self))
            counts[: len(self._counts)] += self._counts
            self._counts = counts
            yield numbers

    def learnt(self) -> tuple[Tokens, np.ndarray | None]:
        counts = Counter(dict(zip(self, self._counts.tolist(), strict=True)))
        limits = {"min_count": self._choice.min_count, "max_size": self._choice.max_vocab_size}
        vocabulary = Vocabulary.from_counts(counts, **limits)
        table = np.array(vocabulary.encode(self), np.int32)
        return Words(vocabulary, spaced=self._spaced), table


class _CharacterCounts(Learner):
    """Code points, and how often they came."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._counts = np.zeros(N_CHARACTERS, np.int64)

    def numbers(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        for text in joined(pieces):
            codes = code_points(text)
            self._counts += np.bincount(codes, minlength=N_CHARACTERS)
            yield codes.astype(np.int32)

    def learnt(self) -> tuple[Tokens, np.ndarray | None]:
        """Return `<unk>`, then characters by falling count, equal counts in their order."""
        ranked = np.argsort(-self._counts, kind="stable")
        n = np.count_nonzero(self._counts >= max(1, self._choice.min_count))
        kept = [UNK, *map(chr, ranked[:n].tolist())][: self._choice.max_vocab_size]
        table = np.zeros(N_CHARACTERS, np.int32)
        table[ranked[: len(kept) - 1]] = np.arange(1, len(kept))
        return Characters(kept), table
