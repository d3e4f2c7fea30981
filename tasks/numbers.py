"""Prompts of tasks whose tokens are numbers and no text."""

from collections.abc import Iterable

from fwlight.types import DataError


def encode_numbers(text: str, *, vocab_size: int) -> list[int]:
    """Ids of a prompt: "4 290 7".

    Raises:
        DataError: A word is not the number of a token.
    """
    words = text.split()
    for word in words:
        if not word.isdecimal() or int(word) >= vocab_size:
            raise DataError(f"{word!r} in the prompt is not a number from 0 to {vocab_size - 1}")
    return [int(word) for word in words]


def decode_numbers(ids: Iterable[int]) -> str:
    """Ids as numbers with spaces between."""
    return " ".join(map(str, ids))
