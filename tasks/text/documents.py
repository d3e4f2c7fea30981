"""Where the articles of WikiText begin, and lines of any text."""

import torch
from torch import Tensor

from fwlight.types import DataError
from tasks.text.tokens import Tokens
from tasks.text.vocabulary import Vocabulary

WITH_DOCUMENTS = ("wikitext103", "wikitext2", "wikitext")
"""Sources whose files say where a document begins."""

RESETS = ("never", "document")
"""What empties a carried memory."""


def check_documents(asked: str, *, data: str, tokenizer: str) -> None:
    """Check that it is known where the documents of a text begin.

    Args:
        asked: The key that asks for it, and its value.
        data: The source, as `task.data`.
        tokenizer: As `task.tokenizer`.

    Raises:
        DataError: it is not.
    """
    if data not in WITH_DOCUMENTS:
        raise DataError(
            f"{asked} needs to know where documents begin, which task.data={data} "
            f"does not say; choose one of {', '.join(WITH_DOCUMENTS)}"
        )
    if tokenizer != "words":
        raise DataError(f"{asked} finds the titles among words: it needs task.tokenizer=words")


def document_starts(stream: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return True `[n]` at the first token of every article's title line, ` = Title = `.

    Titles of sections, which have more equals signs, begin no article. Of the vocabulary `<eos>`
    and `=` are needed; without the latter there are no titles.

    Args:
        stream: Token ids `[n]`, `<eos>` ending every line.
        vocabulary: Of the stream.
    """
    starts = torch.zeros(len(stream), dtype=torch.bool)
    sign = vocabulary.ids.get("=")
    ends = (stream == vocabulary.eos_id).nonzero().squeeze(1)
    if sign is None or len(ends) == 0:
        return starts
    firsts = torch.cat([ends.new_zeros(1), ends[:-1] + 1])
    long_enough = ends - firsts >= 3
    firsts, ends = firsts[long_enough], ends[long_enough]
    outer = (stream[firsts] == sign) & (stream[ends - 1] == sign)
    inner = (stream[firsts + 1] == sign) | (stream[ends - 2] == sign)
    starts[firsts[outer & ~inner]] = True
    return starts


def line_beginnings(stream: Tensor, tokens: Tokens, *, n: int, n_words: int) -> list[list[int]]:
    """Return the first ids of `n` lines, spread over the text; of lines with known words, if any.

    Args:
        stream: Token ids `[n]`.
        tokens: Of the stream.
        n: How many; where the text has fewer lines some come twice.
        n_words: Words of each, of tokens that are smaller about so many.
    """
    ids, length, special = stream.tolist(), n_words * tokens.of_a_word, tokens.line_ends()
    starts = [0, *(place + 1 for place, id in enumerate(ids) if id in special)]
    lines = [ids[start : start + length] for start in starts]
    special |= {tokens.unk_id}
    whole = [line for line in lines if len(line) == length and special.isdisjoint(line)]
    whole = whole or [ids[:length]]
    return [whole[len(whole) * number // n] for number in range(n)]
