"""ListOps: the value of nested list operations, told at their end."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch

from fwlight.types import IGNORE_INDEX, LMBatch
from tasks.answers import AnswersDataModule
from tasks.expressions import DIGITS, PUBLISHED, WORDS, Grammar, check_published, expression
from tasks.io.cache import cached_folder
from tasks.token_rows import python_draws, rows_of_words

EXPRESSIONS = {"train": 10_000, "valid": 1000, "test": 1000}
"""In the paper's files."""
_SEED = 42

Expressions = list[tuple[list[str], int]]


class ListOpsDataModule(AnswersDataModule):
    """Expressions of `tasks.expressions`; the target at the last bracket is the value.

    Generated, training draws new expressions without end, and the evaluation sets are the same for
    every seed. Published, it goes through those of Irie et al. 2021 (arXiv 2106.06295), made from
    the same draws, at depth 10 or 15.

    Args:
        data: `generated` or `published`.
        depth: As of `tasks.expressions.Grammar`.
        operators: See there.
        batch_size: Expressions of a training batch, over all ranks.
        eval_batch_size: Expressions of an evaluation batch, over all ranks; changes no result.
        eval_sequences: Expressions of every evaluation set that is generated.
        seed: Of the training data, or of its order.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A number is out of range or an operator unknown.
    """

    words = WORDS

    def __init__(
        self,
        *,
        data: str = "generated",
        depth: int = 10,
        operators: Sequence[str] = PUBLISHED,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        eval_sequences: int = 1000,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            eval_sequences=eval_sequences,
            seed=seed,
            num_workers=num_workers,
        )
        self.grammar, self.data = Grammar(depth, tuple(operators)), data
        check_published(data, self.grammar)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data; a test may be of another depth."""
        return {"data": self.data, "operators": list(self.grammar.operators)}

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        return {"vocab_size": len(WORDS), "n_outputs": 1 + len(DIGITS)}

    def training_batch(self, step: int) -> LMBatch:
        """All ranks' expressions of a training step."""
        if self.data == "published":
            known = self._published["train"]
            return _batch([known[i] for i in self.next_of(len(known), step).tolist()])
        draw = python_draws("train", self.seed, step)
        return _batch([expression(self.grammar, draw) for _ in range(self.batch_size)])

    def evaluation_sets(self, split: str) -> list[LMBatch]:
        """One set."""
        if self.data == "published":
            return [_batch(self._published[split])]
        draw = python_draws(split, repr(self.grammar))
        return [_batch([expression(self.grammar, draw) for _ in range(self.eval_sequences)])]

    # Parts

    @cached_property
    def _published(self) -> dict[str, Expressions]:
        # Of ten thousand trees that are drawn some hundred are deep enough.
        key = f"depth{self.grammar.depth}-1"
        folder = cached_folder("listops", key=key, build=self._write)
        return {split: json.loads((folder / f"{split}.json").read_text()) for split in EXPRESSIONS}

    def _write(self, folder: Path) -> None:
        draw = Random(_SEED)
        for split, n in EXPRESSIONS.items():
            drawn = [expression(self.grammar, draw) for _ in range(n)]
            (folder / f"{split}.json").write_text(json.dumps(drawn), encoding="ascii")


def _batch(expressions: Expressions) -> LMBatch:
    tokens, values = zip(*expressions, strict=True)
    inputs = rows_of_words(tokens, WORDS, 0)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    last = torch.tensor([len(row) - 1 for row in tokens])
    answers = torch.tensor([WORDS.index(str(value)) for value in values])
    return LMBatch(inputs, targets.scatter_(1, last[:, None], answers[:, None]))
