"""State tracking: answers that follow from all tokens so far, also at lengths never trained."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Generator

from fwlight.types import IGNORE_INDEX, LMBatch
from tasks.answers import AnswersDataModule
from tasks.draws import seeded
from tasks.tracking import tracking_sequences
from tasks.tracking_problems import PROBLEMS, Targets, check_lengths, lengths_within, ranges


class StateTrackingDataModule(AnswersDataModule):
    """A problem of `tasks.tracking`, at lengths to train and longer ones to test.

    Training draws new batches without end. Validation and test have equally many sequences of every
    range of lengths that ends with one of `test_lengths`; where all positions are asked, these are
    the positions of the range in sequences as long as its end. Both are the same for every seed. A
    sequence's number of tokens tells its range.

    Args:
        problem: Its name.
        train_length: The shortest and the longest length; each row's is drawn uniformly.
        test_lengths: The ends of the ranges, growing; the first begins with the shortest trained
            length.
        targets: Ask at `all` positions or at the `last`; None: as published.
        grow_from: The longest length of the first batch, if it grows.
        grow_steps: Batches after which the longest length is that of `train_length`; 0: from the
            first.
        batch_size: Sequences of a training batch, over all ranks.
        eval_batch_size: Sequences of an evaluation batch, over all ranks; changes no result.
        eval_sequences: Sequences of every range, in the validation and in the test set.
        seed: Of the training data.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: There is no such problem, or no sequence of a length.
    """

    def __init__(
        self,
        *,
        problem: str = "parity",
        train_length: Sequence[int] = (3, 40),
        test_lengths: Sequence[int] = (40, 64, 128, 256),
        targets: Targets | None = None,
        grow_from: int | None = None,
        grow_steps: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        eval_sequences: int = 512,
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
        check_lengths(
            problem,
            train_length=train_length,
            test_lengths=test_lengths,
            grow_from=grow_from,
            grow_steps=grow_steps,
            targets=targets,
        )
        known = PROBLEMS[problem]
        self.problem = problem
        self.train_length, self.test_lengths = tuple(train_length), tuple(test_lengths)
        self.last = (targets or known.targets) == "last"
        self._grow_from, self._grow_steps = grow_from, grow_steps
        # Where every position is asked, a sequence has the shorter ones in it.
        self._shortest = train_length[0] if self.last or known.whole else 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"problem": self.problem, "last": self.last}

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        known = PROBLEMS[self.problem]
        return {"vocab_size": 1 + max(known.tokens, known.answers)}

    @cached_property
    def chance(self) -> float:
        """Share of right answers of a guess; of languages, of the most frequent answer."""
        if (known := PROBLEMS[self.problem].chance) is not None:
            return known
        lengths = (self._shortest, self.train_length[1])
        answers = self._sequences(4096, lengths, seeded("chance", self.problem)).targets
        counts = answers[answers != IGNORE_INDEX].bincount()
        return float(counts.max() / counts.sum())

    def training_batch(self, step: int) -> LMBatch:
        """All ranks' sequences of a training step."""
        shortest, longest = self.train_length
        if self._grow_from is not None:
            grown = (longest - self._grow_from) * step // self._grow_steps
            longest = min(longest, self._grow_from + grown)
        lengths = (min(shortest, longest), longest)
        if not lengths_within(PROBLEMS[self.problem], *lengths):  # between two of its lengths
            lengths = (1, longest)
        return tracking_sequences(
            self.problem,
            self.batch_size,
            lengths=lengths,
            last=self.last,
            generator=seeded("train", self.seed, step),
        )

    def evaluation_sets(self, split: str) -> list[LMBatch]:
        """Equally many sequences of every range of lengths."""
        return [
            self._sequences(self.eval_sequences, each, seeded(split, self.problem, *each))
            for each in ranges(self._shortest, self.test_lengths)
        ]

    def _sequences(self, n: int, lengths: tuple[int, int], generator: Generator) -> LMBatch:
        first, last = lengths
        if not (self.last or PROBLEMS[self.problem].whole):
            lengths = (last, last)
        return tracking_sequences(
            self.problem,
            n,
            lengths=lengths,
            asked_from=1 if PROBLEMS[self.problem].whole else first,
            last=self.last,
            generator=generator,
        )
