"""Sequences of the six problems of MAD (Poli et al. 2024, arXiv 2403.17844).

They follow the benchmark's own generators where these say more than the paper. A row of each, with
a vocabulary of 8, the target under the input (. is IGNORE_INDEX):

    recall          inputs  0 4 2 6 0 4 2      keys 0 to 3, values 4 to 7; a key that comes again
                    targets . . . . 4 . 6      is asked
    fuzzy           keys and values of 1 to `motif` tokens, 7 pads before
    noisy           pairs of noise in between
    selective_copy  inputs  6 3 6 1 7 6 6      blanks 6 between tokens, then 7
                    targets . . . . . 3 1
    compression     inputs  3 1 5 7            all tokens, from the network's last state
                    targets 3 1 5 7
    memorisation    inputs  0 7 2 7            the values of keys, the same in all sequences
                    targets . 5 . 4
"""

import random
from functools import cache

import torch
from torch import Generator, Tensor

from fwlight.types import IGNORE_INDEX, LMBatch
from tasks.draws import seeded
from tasks.mad_problems import MADSettings


def mad_sequences(
    problem: str, n: int, *, settings: MADSettings, every_next: bool, generator: Generator
) -> LMBatch:
    """Draw `n` sequences.

    Args:
        problem: One of `tasks.mad_problems.BASELINES`.
        n: How many.
        settings: Their sizes.
        every_next: For training: of recall, fuzzy and noisy every next token is a target; of fuzzy
            keys of fewer tokens occur too.
        generator: Where all draws come from.
    """
    if problem in ("recall", "noisy"):
        tokens, answers = _recall(n, settings, generator)
    elif problem == "fuzzy":
        tokens, answers = _fuzzy(n, settings, generator, any_length=every_next)
    else:
        draw = {"selective_copy": _copy, "compression": _compression, "memorisation": _memory}
        return LMBatch(*draw[problem](n, settings, generator))
    return LMBatch(tokens[:, :-1], (tokens if every_next else answers)[:, 1:])


def _recall(n: int, settings: MADSettings, generator: Generator) -> tuple[Tensor, Tensor]:
    """Tokens and answers `[n, seq_len]`; the last pair is one of those before it."""
    pairs, names = settings.seq_len // 2, settings.vocab_size - settings.noise_vocab_size
    n_keys = names // 2

    def integers(bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, (n, *shape), generator=generator)

    keys, values = integers(n_keys, pairs), n_keys + integers(names - n_keys, n_keys)
    noisy = torch.rand(n, pairs, generator=generator) < settings.noise
    noisy.scatter_(1, integers(pairs - 1, 1), False)  # one pair has to be there
    noisy[:, -1] = False
    places = torch.arange(pairs).expand(n, -1).masked_fill(noisy, pairs)
    first = torch.full((n, n_keys), pairs)
    first = first.scatter_reduce(1, keys[:, :-1], places[:, :-1], "amin")
    keys[:, -1:] = torch.multinomial((first < pairs).float(), 1, generator=generator)
    asked = ~noisy & (first.gather(1, keys) < torch.arange(pairs))
    tokens = torch.stack((keys, values.gather(1, keys)), 2)
    answers = torch.full_like(tokens, IGNORE_INDEX)
    answers[..., 1] = tokens[..., 1].masked_fill(~asked, IGNORE_INDEX)
    if settings.noise:
        noise = names + integers(settings.noise_vocab_size, pairs, 2)
        tokens = torch.where(noisy[..., None], noise, tokens)
    return tokens.flatten(1), answers.flatten(1)


def _fuzzy(
    n: int, settings: MADSettings, generator: Generator, *, any_length: bool
) -> tuple[Tensor, Tensor]:
    """Tokens and answers `[n, seq_len + 1]`: one more is the target of the last input."""
    length, pad = settings.seq_len + 1, settings.vocab_size - 1
    rows = []
    for seed in torch.randint(2**62, (n,), generator=generator).tolist():
        tokens, answers = _fuzzy_row(settings, random.Random(seed), any_length=any_length)
        lacking = length - len(tokens)
        rows.append(([pad] * lacking + tokens, [IGNORE_INDEX] * lacking + answers))
    tokens, answers = torch.tensor(rows).unbind(1)
    return tokens, answers


def _fuzzy_row(
    settings: MADSettings, chance: random.Random, *, any_length: bool
) -> tuple[list[int], list[int]]:
    """One row without what pads it, and its answers: values of keys that were there before."""
    names, most = settings.vocab_size - 1, settings.motif
    letters, signs = range(names // 2), range(names // 2, names)

    def word(alphabet: range, *, shorter: bool) -> tuple[int, ...]:
        size = 1 + int(most * chance.random()) if shorter else most
        found: list[int] = []
        while len(found) < size:
            token = alphabet[int(len(alphabet) * chance.random())]
            if token not in found:
                found.append(token)
        return tuple(found)

    asked = word(letters, shorter=any_length), word(signs, shorter=True)
    size = sum(map(len, asked))
    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    tokens: list[int] = []
    answers: list[int] = []

    def add(key: tuple[int, ...]) -> None:
        known = key in value_of
        if not known:
            value_of[key] = asked[1] if key == asked[0] else word(signs, shorter=True)
        value = value_of[key]
        tokens.extend((*key, *value))
        answers.extend([IGNORE_INDEX] * len(key))
        answers.extend(value if known else [IGNORE_INDEX] * len(value))

    end = settings.seq_len - size - 2 * most
    begin = chance.randrange(max(1, end - 2 * most))  # so that one pair begins after it
    while len(tokens) < end:
        due = len(tokens) >= begin and asked[0] not in value_of
        add(asked[0] if due else word(letters, shorter=any_length))
    add(asked[0])
    return tokens, answers


def _copy(n: int, settings: MADSettings, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blanks before tokens drawn uniformly, so that none follows the last one."""
    blank, copy = settings.vocab_size - 2, settings.vocab_size - 1
    tokens = torch.randint(blank, (n, settings.n_copy), generator=generator)
    blanks = settings.seq_len - 2 * settings.n_copy - 1
    before = torch.randint(settings.n_copy, (n, blanks), generator=generator)
    places = torch.cat((2 * before, 1 + 2 * torch.arange(settings.n_copy).expand(n, -1)), 1)
    order = places.argsort(dim=1, stable=True)
    mixed = torch.cat((tokens.new_full((n, blanks), blank), tokens), 1).gather(1, order)
    ends = tokens.new_full((n, 1), copy), tokens.new_full(tokens.shape, blank)
    asked = tokens.new_full((n, blanks + settings.n_copy + 1), IGNORE_INDEX), tokens
    return torch.cat((mixed, *ends), 1), torch.cat(asked, 1)


def _compression(n: int, settings: MADSettings, generator: Generator) -> tuple[Tensor, Tensor]:
    """The benchmark counts the last token, which is always the same one, too."""
    last = settings.vocab_size - 1
    tokens = torch.randint(last, (n, settings.seq_len), generator=generator)
    tokens[:, -1] = last
    return tokens, tokens


def _memory(n: int, settings: MADSettings, generator: Generator) -> tuple[Tensor, Tensor]:
    """A key, then the token of the place where its value belongs."""
    value_of = fixed_values(settings.vocab_size)
    shape = (n, settings.seq_len // 2)
    keys = torch.randint(len(value_of), shape, generator=generator)
    tokens = torch.stack((keys, torch.full_like(keys, settings.vocab_size - 1)), 2)
    answers = torch.stack((torch.full_like(keys, IGNORE_INDEX), value_of[keys]), 2)
    return tokens.flatten(1), answers.flatten(1)


@cache
def fixed_values(vocab_size: int) -> Tensor:
    """The values of keys 0, 1, ... that are to be memorised: each another one of the upper half."""
    n_keys = (vocab_size - 1) // 2
    values = torch.randperm(vocab_size - 1 - n_keys, generator=seeded("MAD", vocab_size))
    return n_keys + values[:n_keys]
