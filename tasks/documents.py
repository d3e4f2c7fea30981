"""Where the articles of WikiText begin."""

import torch
from torch import Tensor

from tasks.vocabulary import Vocabulary

WITH_DOCUMENTS = ("wikitext103", "wikitext2", "wikitext")
"""Sources whose files say where a document begins."""


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
