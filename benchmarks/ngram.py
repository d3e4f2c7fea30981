"""The bar of counting: n-gram perplexities on the same tokens, splits and targets as a model's.

    python -m benchmarks.ngram [task.data=stdlib|wikitext|text] [task.path=...]
      [task.tokenizer=words|chars|bytes|bpe|PATH] [task.min_count=...]
    python -m benchmarks.ngram beside=RUN_DIR

The second form takes the data of a finished run and prints the run's own perplexity beside. Bits
per byte compare figures of different tokens; see docs/language_modelling.md.

Two ways of interpolating the orders, both proper distributions over the whole vocabulary:

- Jelinek-Mercer: p_n(w|h) = l p_ML(w|h) + (1-l) p_{n-1}(w|h'), the weight l tied over histories
  h of similar count and fitted by expectation-maximisation on the validation split (Jelinek and
  Mercer 1980; buckets after Bahl, Jelinek and Mercer 1983).
- Kneser-Ney, modified and interpolated: counts discounted by D1, D2 or D3+, lower orders counting
  the distinct words before (Chen and Goodman 1999, section 3); nothing is fitted on the
  validation split.

The history runs over line ends, as a model's does. The stream's first token is no target.
"""

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from benchmarks.counts import NGramTable, distinct_suffixes, histories
from fwlight.types import DataError
from tasks.lm import LanguageModelingDataModule

Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]

_EM_STEPS = 100
_BUCKETS = 64
_NUMBERS = ("min_count", "max_vocab_size", "vocab_size")
_KEYS = ("data", "path", "train", "valid", "test", "tokenizer", *_NUMBERS)


class JelinekMercer:
    """Interpolated maximum-likelihood n-grams.

    Args:
        train: Training stream.
        held_out: Stream on which the weights are fitted.
        order: Length of the longest n-gram.
        vocab_size: Number of words.
    """

    def __init__(self, train: Ids, held_out: Ids, *, order: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._tables = [NGramTable.count(train, n, vocab_size) for n in range(1, order + 1)]
        self._weights = [np.full(_BUCKETS, 0.5) for _ in self._tables]
        history, words = histories(held_out, order)
        estimates = [self._estimate(table, history, words) for table in self._tables]
        for _ in range(_EM_STEPS):
            self._em_step(estimates)

    def probability(self, history: Ids, words: Ids) -> Probabilities:
        """p(w|h) for rows of `history` `[N, order-1]` (-1 before the start) and `words` `[N]`."""
        estimates = [self._estimate(table, history, words) for table in self._tables]
        return self._interpolated(estimates)[-1]

    def _interpolated(self, estimates: list[tuple[Probabilities, Ids]]) -> list[Probabilities]:
        """Probabilities by order, from the uniform distribution up."""
        p = [np.full(len(estimates[0][0]), 1 / self._vocab_size)]
        for (ml, bucket), weights in zip(estimates, self._weights, strict=True):
            p.append(weights[bucket] * ml + (1 - weights[bucket]) * p[-1])
        return p

    def _em_step(self, estimates: list[tuple[Probabilities, Ids]]) -> None:
        p = self._interpolated(estimates)
        reached = np.ones_like(p[0])  # posterior that a word was not drawn from a longer history
        for n in reversed(range(len(estimates))):
            ml, bucket = estimates[n]
            hit = reached * self._weights[n][bucket] * ml / p[n + 1]
            hits = np.bincount(bucket, hit, minlength=_BUCKETS)
            tries = np.bincount(bucket, reached, minlength=_BUCKETS)
            # One imagined hit and miss a bucket keep each weight inside (0, 1).
            self._weights[n] = (hits + 1) / (tries + 2)
            self._weights[n][0] = 0.0  # nothing followed this history in training
            reached = reached - hit

    @staticmethod
    def _estimate(table: NGramTable, history: Ids, words: Ids) -> tuple[Probabilities, Ids]:
        """Maximum likelihood and the bucket of the history's count: 0, 1, 2-3, 4-7, ..."""
        context = table.context(history)
        total = table.total(context)
        ml = table.count_of(context, words) / np.maximum(total, 1)
        return ml, np.ceil(np.log2(total + 1)).astype(np.int64)


class KneserNey:
    """Interpolated modified Kneser-Ney n-grams.

    Args:
        train: Training stream.
        order: Length of the longest n-gram.
        vocab_size: Number of words.
    """

    def __init__(self, train: Ids, *, order: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        tables = [NGramTable.count(train, order, vocab_size)]
        while len(tables) < order:
            tables.insert(0, distinct_suffixes(tables[0]))
        self._levels = [(table, *_discounts(table)) for table in tables]

    def probability(self, history: Ids, words: Ids) -> Probabilities:
        """p(w|h) for rows of `history` `[N, order-1]` (-1 before the start) and `words` `[N]`."""
        p = np.full(len(words), 1 / self._vocab_size)
        for table, discounts, freed in self._levels:
            context = table.context(history)
            total, count = table.total(context), table.count_of(context, words)
            kept = count - discounts[np.minimum(count, 3).astype(np.int64)]
            backoff = table.per_context(freed, context)
            seen = total > 0
            p = np.where(seen, (kept + backoff * p) / np.maximum(total, 1), p)
        return p


def _discounts(table: NGramTable) -> tuple[Probabilities, Probabilities]:
    """D(0..3+) of Chen and Goodman and the mass freed in each context."""
    n = [np.count_nonzero(table.counts == c) for c in range(1, 5)]
    discounts = np.zeros(4)
    y = n[0] / (n[0] + 2 * n[1]) if n[0] else 0.5
    for c in (1, 2, 3):
        estimate = c - (c + 1) * y * n[c] / n[c - 1] if n[c - 1] else y
        # Too few counts of counts can put it outside what a count can give away.
        discounts[c] = estimate if 0 < estimate < c else y
    freed = discounts[np.minimum(table.counts, 3).astype(np.int64)]
    return discounts, table.sum_per_context(freed)


def perplexity(model: JelinekMercer | KneserNey, stream: Ids, order: int) -> float:
    """Geometric mean of 1/p(w|h) over all but the stream's first token."""
    history, words = histories(stream, order)
    return float(np.exp(-np.log(model.probability(history, words)).mean()))


def ngram_perplexities(
    train_ids: ArrayLike, valid_ids: ArrayLike, test_ids: ArrayLike, vocab_size: int
) -> dict[str, dict[str, float]]:
    """Perplexities of the n-gram models by name and split.

    The names are `unigram`, and `bigram` and `trigram` followed by `jelinek-mercer` or
    `kneser-ney`; the splits `valid` and `test`. Jelinek-Mercer's weights, the unigram's share of
    the uniform distribution too, were fitted on `valid`.

    Args:
        train_ids: Token ids of the training split `[N]`.
        valid_ids: Likewise of the validation split.
        test_ids: Likewise of the test split.
        vocab_size: Number of tokens.
    """
    train, valid, test = (np.asarray(x, dtype=np.int64) for x in (train_ids, valid_ids, test_ids))
    figures = {}
    for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        models = {
            "jelinek-mercer": JelinekMercer(train, valid, order=order, vocab_size=vocab_size),
            "kneser-ney": KneserNey(train, order=order, vocab_size=vocab_size),
        }
        if order == 1:
            models = {"": models["jelinek-mercer"]}
        for method, model in models.items():
            figures[f"{name} {method}".strip()] = {
                "valid": perplexity(model, valid, order),
                "test": perplexity(model, test, order),
            }
    return figures


def strongest(figures: dict[str, dict[str, float]], split: str) -> dict[str, float]:
    """The lowest perplexity of each order, `unigram`, `bigram` and `trigram`, on a split."""
    best: dict[str, float] = {}
    for name, figure in figures.items():
        order = name.split()[0]
        best[order] = min(figure[split], best.get(order, np.inf))
    return best


def main(argv: Sequence[str]) -> int:
    """Print the table for the data that the arguments name; the exit code."""
    run = argv[0].removeprefix("beside=") if len(argv) == 1 and "beside=" in argv[0] else None
    try:
        arguments = _task_arguments(argv) if run is None else _arguments_of_run(Path(run))
        data = LanguageModelingDataModule(**arguments)
        data.setup()
        own = None if run is None else _figures_of_run(Path(run))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    streams = {split: stream.numpy() for split, stream in data.streams.items()}
    size = len(data.tokens)
    figures = ngram_perplexities(streams["train"], streams["valid"], streams["test"], size)
    tokens = ", ".join(f"{split} {len(stream):,}" for split, stream in streams.items())
    print(f"{data.data}: {tokens} tokens, {size:,} {data.tokens.kind}")
    print(f"fingerprint {data.fingerprint}")
    print(f"{'perplexity, bits per byte':<26}{'valid':>10}{'test':>10}{'valid':>9}{'test':>9}")
    per_target = [data.bytes_per_target(split) for split in ("val", "test")]
    if own is not None:
        figures[str(run)] = {"valid": own["val/best_ppl"], "test": own["test/ppl"]}
    for name, figure in figures.items():
        both = (figure["valid"], figure["test"])
        bits = [np.log2(value) / n for value, n in zip(both, per_target, strict=True)]
        print(f"{name:<26}{both[0]:>10.2f}{both[1]:>10.2f}{bits[0]:>9.3f}{bits[1]:>9.3f}")
    if data.data == "stdlib":
        print(
            f"The text is that of Python {platform.python_version()}'s own library: figures of "
            "different Python versions are not comparable, fingerprints tell them apart."
        )
    return 0


def _arguments_of_run(run: Path) -> dict[str, Any]:
    """The data that a run's config.yaml names."""
    try:
        task = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{run}/config.yaml is not that of a run: {error}") from error
    return {key: task[key] for key in _KEYS if key in task}


def _figures_of_run(run: Path) -> dict[str, float]:
    """What a finished run's summary.json says."""
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{run}/summary.json is not there yet: finish the run first") from error


def _task_arguments(argv: Sequence[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        name = key.removeprefix("task.")
        if not equals or name == key or name not in _KEYS:
            choices = ", ".join(f"task.{key}" for key in _KEYS)
            raise DataError(f"{argument} is not KEY=VALUE with a key of {choices}")
        if name in _NUMBERS:
            if not value.isdecimal():
                raise DataError(f"{argument} is not a whole number")
            arguments[name] = int(value)
        else:
            arguments[name] = value
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
