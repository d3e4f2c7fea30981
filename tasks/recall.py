"""Sequences of multi-query associative recall.

The task is that of Zoology (Arora et al. 2023, arXiv 2312.04927, sec. 4): pairs of key and value,
then every key once more, where its value is to be predicted.
"""

import torch

from fwlight.types import IGNORE_INDEX, LMBatch


def recall_sequences(
    n: int,
    *,
    n_pairs: int,
    seq_len: int,
    vocab_size: int,
    power: float,
    generator: torch.Generator,
) -> LMBatch:
    """Draw `n` sequences `[n, seq_len]`.

    A row of n_pairs=2, seq_len=14, vocab_size=12, (. is IGNORE_INDEX):

        inputs    4 9 2 7 | 2 0 0 0 0 0 4 0 0 0
        targets   . . . . | 7 . . . . . 9 . . .

    Keys are from 1 ... vocab_size/2 - 1, values from the upper half; within a row none occurs
    twice. After the pairs every second position is a place for a query. The places j = 1, 2, ... of
    the queries are drawn without replacement with p_j proportional to j^(power - 1): a power law of
    the gap to the pairs, as between repeated bigrams in text. All other positions are 0, as in the
    experiments of Zoology's figure 2.
    """
    half, places = vocab_size // 2, (seq_len - 2 * n_pairs) // 2
    keys = 1 + torch.rand(n, half - 1, generator=generator).topk(n_pairs).indices
    values = half + torch.rand(n, vocab_size - half, generator=generator).topk(n_pairs).indices
    law = torch.arange(1, places + 1, dtype=torch.float64) ** (power - 1)
    chosen = torch.multinomial(law.expand(n, -1), n_pairs, generator=generator)
    queries = 2 * n_pairs + 2 * chosen
    inputs = torch.zeros(n, seq_len, dtype=torch.int64)
    inputs[:, : 2 * n_pairs] = torch.stack((keys, values), dim=-1).flatten(1)
    inputs.scatter_(1, queries, keys)
    targets = torch.full_like(inputs, IGNORE_INDEX).scatter_(1, queries, values)
    return LMBatch(inputs, targets)
