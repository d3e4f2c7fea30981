"""The n-gram models against probabilities by hand and against slow loops over dictionaries."""

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from benchmarks.counts import NGramTable, distinct_suffixes, histories
from benchmarks.ngram import (
    JelinekMercer,
    KneserNey,
    main,
    ngram_perplexities,
    perplexity,
    strongest,
)
from tasks.lm import LanguageModelingDataModule

V = 6
streams = st.lists(st.integers(0, V - 2), min_size=4, max_size=60).map(np.array)
"""Word V-1 never occurs in them."""


def _zipf(n, seed, vocab_size=V):
    weights = 1 / np.arange(1, vocab_size + 1)
    return np.random.default_rng(seed).choice(vocab_size, size=n, p=weights / weights.sum())


def _every_word_after_every_history(order):
    # -1 stands for words before the start, so none follows a word.
    histories = [
        h for h in product(range(-1, V), repeat=order - 1) if not (order == 3 and h[1] < 0 <= h[0])
    ]
    words = np.tile(np.arange(V), len(histories))
    return np.repeat(np.array(histories, dtype=np.int64), V, axis=0), words


def test_counts_by_hand():
    table = NGramTable.count(np.array([0, 1, 0, 1, 2, 0, 2]), 2, V)
    after_0 = table.context(np.array([[0]]))
    assert [table.count_of(after_0, np.array([w]))[0] for w in range(4)] == [0, 2, 1, 0]
    assert table.total(after_0)[0] == 3
    assert table.total(table.context(np.array([[5]])))[0] == 0
    suffixes = distinct_suffixes(table)
    none = np.zeros(1, dtype=np.int64)
    assert [suffixes.count_of(none, np.array([w]))[0] for w in range(4)] == [2, 1, 2, 0]


def test_histories_begin_before_the_start():
    history, words = histories(np.array([7, 8, 9]), 3)
    assert history.tolist() == [[-1, 7], [7, 8]]
    assert words.tolist() == [8, 9]


def test_kneser_ney_bigram_by_hand():
    # Bigrams: 01 twice, 10, 12, 20, 02 once, so n1 = 4, n2 = 1, Y = 2/3,
    # D1 = 1 - 2 Y/4 = 2/3, D2 = 2 - 3 Y 0/1 = 2 -> outside (0, 2), hence Y.
    # Distinct words before: 0: {1, 2}, 1: {0}, 2: {1, 0}; n1 = 1, n2 = 2, Y = 1/5,
    # D1 = 1 - 2 Y 2 = 1/5, D2 = 2 -> Y; p1(w) = (c - 1/5 + 3/5 / V) / 5.
    model = KneserNey(np.array([0, 1, 0, 1, 2, 0, 2]), order=2, vocab_size=V)
    unigram = {w: (c - 0.2 + 0.6 / V) / 5 for w, c in {0: 2, 1: 1, 2: 2}.items()}
    p = model.probability(np.array([[0], [0], [0], [4]]), np.array([1, 2, 0, 1]))
    free = 4 / 3
    expected = [
        (2 - 2 / 3 + free * unigram[1]) / 3,
        (1 - 2 / 3 + free * unigram[2]) / 3,
        free * unigram[0] / 3,
        unigram[1],
    ]
    assert_allclose(p, expected, rtol=1e-12)


def test_jelinek_mercer_unigram_by_hand():
    # Two words in training, 0 three times as frequent; held out: 0 and the unseen word 5.
    # Fixed point of w = (w m / (w m + (1 - w)/V) + 0 + 1) / (2 + 2) with m = 3/4, V = 6.
    model = JelinekMercer(np.array([0, 0, 0, 1]), np.array([0, 0, 5]), order=1, vocab_size=V)
    w = 0.5
    for _ in range(1000):
        w = (w * 0.75 / (w * 0.75 + (1 - w) / 6) + 1) / 4
    p = model.probability(np.zeros((3, 0), dtype=np.int64), np.array([0, 1, 5]))
    assert_allclose(p, [w * 0.75 + (1 - w) / 6, w * 0.25 + (1 - w) / 6, (1 - w) / 6], rtol=1e-9)


def _slow_kneser_ney(train, order, history, word, discounts):
    """Recursion over dictionaries; the discounts of each order are given."""
    p = 1 / V
    for n in range(1, order + 1):
        grams = Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))
        for length in range(order - 1, n - 1, -1):
            left = defaultdict(set)
            for gram in grams:
                left[gram[-length:]].add(gram[:-length])
            grams = Counter({gram: len(words) for gram, words in left.items()})
        context = tuple(history[len(history) - n + 1 :])
        followers = {gram[-1]: c for gram, c in grams.items() if gram[:-1] == context}
        total = sum(followers.values())
        if total:
            d = discounts[n - 1]
            free = sum(d[min(c, 3)] for c in followers.values())
            kept = followers[word] - d[min(followers[word], 3)] if word in followers else 0
            p = (kept + free * p) / total
    return p


@pytest.mark.parametrize("order", [2, 3])
def test_kneser_ney_equals_the_slow_recursion(order):
    train = _zipf(60, seed=order)
    model = KneserNey(train, order=order, vocab_size=V)
    discounts = [level[1] for level in model._levels]
    history, words = _every_word_after_every_history(order)
    expected = [
        _slow_kneser_ney(train, order, tuple(h), w, discounts)
        for h, w in zip(history, words, strict=True)
    ]
    assert_allclose(model.probability(history, words), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@given(train=streams, held_out=streams)
def test_probabilities_sum_to_one_and_none_is_zero(order, train, held_out):
    history, words = _every_word_after_every_history(order)
    models = [JelinekMercer(train, held_out, order=order, vocab_size=V)]
    if order > 1:
        models.append(KneserNey(train, order=order, vocab_size=V))
    for model in models:
        p = model.probability(history, words)
        assert p.min() > 0
        assert_allclose(p.reshape(-1, V).sum(1), 1, rtol=1e-9)


def test_jelinek_mercer_weights_are_the_best_on_the_held_out_text():
    noise = np.random.default_rng(4)
    stream = np.tile([0, 1, 2, 0, 3], 1000)
    stream = np.where(noise.random(len(stream)) < 0.3, _zipf(len(stream), seed=5), stream)
    model = JelinekMercer(stream[:2000], stream[2000:], order=3, vocab_size=V)
    best = perplexity(model, stream[2000:], 3)
    for level, fitted in enumerate(list(model._weights)):
        for change in (-0.1, 0.1):
            model._weights[level] = np.clip(fitted + change * (fitted > 0), 0, 1)
            assert perplexity(model, stream[2000:], 3) > best
        model._weights[level] = fitted


def test_perplexity_is_over_all_targets_but_the_first_token():
    train = _zipf(50, seed=3)
    model = KneserNey(train, order=2, vocab_size=V)
    p = [model.probability(np.array([[a]]), np.array([b]))[0] for a, b in [(0, 1), (1, 1), (1, 4)]]
    assert perplexity(model, np.array([0, 1, 1, 4]), 2) == pytest.approx(np.prod(p) ** (-1 / 3))


def test_longer_histories_help_where_text_has_structure():
    stream = np.tile([0, 1, 2, 0, 3, 2, 4], 100)  # 2 is followed by 0 or 4, by what came before
    figures = ngram_perplexities(stream, stream[:140], stream[:140], V)
    assert figures["unigram"]["test"] > figures["bigram kneser-ney"]["test"]
    assert figures["bigram kneser-ney"]["test"] > figures["trigram kneser-ney"]["test"]
    best = strongest(figures, "test")
    assert set(best) == {"unigram", "bigram", "trigram"}
    assert best["trigram"] < 1.3


def test_command_prints_the_table(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat .\nthe dog sat .\n" * 50)
    assert main(["task.data=text", f"task.path={path}", "task.min_count=1"]) == 0
    printed = capsys.readouterr().out
    for name in ("fingerprint", "unigram", "bigram jelinek-mercer", "trigram kneser-ney"):
        assert name in printed


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe"])
def test_command_counts_bits_per_byte_of_other_tokens(tmp_path, capsys, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"na\u00efve line {i * i % 91} .\n" for i in range(500)), newline="")
    arguments = [f"task.path={path}", f"task.tokenizer={tokenizer}", "task.vocab_size=270"]
    assert main(["task.data=text", *arguments]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (unigram,) = ([*map(float, row[1:])] for row in rows if row[0] == "unigram")
    data = LanguageModelingDataModule(data="text", path=path, tokenizer=tokenizer, vocab_size=270)
    data.setup()
    for split, ppl, bits in zip(("valid", "test"), unigram[:2], unigram[2:], strict=True):
        stream = data.streams[split].tolist()
        n_bytes = len(data.decode(stream).encode())
        assert bits == pytest.approx(np.log2(ppl) * (len(stream) - 1) / n_bytes, abs=2e-3)


@pytest.mark.parametrize(
    "argument", ["task.paht=x", "task.data", "task.min_count=two", "data=text"]
)
def test_command_refuses_what_it_does_not_know(argument, capsys):
    assert main([argument]) == 2
    assert capsys.readouterr().err.startswith(f"error: {argument}")
