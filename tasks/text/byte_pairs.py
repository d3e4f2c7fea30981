"""Subwords of a language model: byte pairs learnt on its training text, or anybody's tokenizer."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fwlight.types import DataError
from tasks.io.textfiles import Piece, existing_file
from tasks.text import tokens
from tasks.text.tokens import TOKENIZERS, Tokens

LEAST = 256
"""Entries of the smallest vocabulary: one for every byte."""
_MOST_IDS = 1 << 31


class Subwords(Tokens):
    """The pieces of a tokenizer of the library `tokenizers`, no special ones among them.

    What looks like a special entry (`<|endoftext|>`) is text. Lines are cut each on its own.

    Args:
        text: Of a tokenizer.json.

    Raises:
        DataError: it is no such thing.
    """

    kind = "FILE"
    of_a_word = 2

    def __init__(self, text: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"this is no tokenizer.json: {error}") from error
        self._text = text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._n = 1 + max(ids.values(), default=-1)
        if not 0 < self._n < _MOST_IDS:
            raise DataError(f"this tokenizer.json has no entry, or ids up to {self._n - 1:,}")
        self.unk_id = _unknown(json.loads(text)["model"], ids)

    def __len__(self) -> int:
        return self._n

    def ids(self, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
        """Return the ids of a text."""
        return tokens.in_chunks(
            encoding.ids
            for lines in _batches(pieces)
            for encoding in self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text, as far as the tokenizer keeps it."""
        known = [index for index in ids if self._tokenizer.id_to_token(index) is not None]
        return self._tokenizer.decode(known, skip_special_tokens=False)

    def line_ends(self) -> frozenset[int]:
        """Return the ids of pieces that end in a line feed."""
        return frozenset(i for i in range(self._n) if self.decode([i]).endswith("\n"))

    def state_dict(self) -> dict[str, Any]:
        """Return the tokenizer.json."""
        return {"tokenizer": self._text}


class BytePairs(Subwords):
    """Byte-pair encoding of UTF-8's bytes, which knows every text and gives it back."""

    kind = "bpe"


def learn_byte_pairs(pieces: Iterable[Piece], *, vocab_size: int) -> BytePairs:
    """Learn byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, sec. 2.2).

    Words are cut by the expression of GPT-2, and no pair goes over the end of a line.

    Args:
        pieces: The training text.
        vocab_size: Most entries, the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece.whole for piece in pieces), trainer)
    return BytePairs(tokenizer.to_str())


def read_tokenizer(name: str) -> Subwords:
    """Return the tokenizer of a file.

    Raises:
        DataError: it is not there, or no tokenizer.json.
    """
    try:
        file = existing_file(name)
        return Subwords(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"task.tokenizer={name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"task.tokenizer={name}: this is no tokenizer.json but a binary file"
        ) from error
    except DataError as error:
        near = difflib.get_close_matches(name, TOKENIZERS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"task.tokenizer={name} is none of {', '.join(TOKENIZERS)}, and as a file: "
            f"{error}{guess}"
        ) from error


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """Return the id of the unknown piece, which models name or number."""
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else ids.get(name)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[str]]:
    """Yield lines, about `CHUNK` characters of them at a time."""
    lines, length = [], 0
    for piece in pieces:
        lines.append(piece.whole)
        length += len(lines[-1])
        if length >= tokens.CHUNK:
            yield lines
            lines, length = [], 0
    yield lines
