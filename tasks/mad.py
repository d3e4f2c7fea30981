"""The six problems of MAD as a task (Poli et al. 2024, arXiv 2403.17844)."""

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from fwlight.types import DataError, LMBatch
from tasks.answers import AnswersDataModule
from tasks.draws import seeded
from tasks.mad_problems import settings_of
from tasks.mad_sequences import mad_sequences

TRAIN_TARGETS = ("next", "answers")


class MADDataModule(AnswersDataModule):
    """A problem of `tasks.mad_sequences`: a training set that is gone through again and again.

    The evaluation sets are the same for every seed. MAD tests on its test set after every epoch and
    has no other; here the validation set is another one.

    Args:
        problem: One of `tasks.mad_problems.BASELINES`.
        vocab_size: These and the next six as of `tasks.mad_problems.MADSettings`; None: those of
            the problem's baseline.
        seq_len: See there.
        n_train: See there.
        noise_vocab_size: See there.
        noise: See there.
        n_copy: See there.
        motif: See there.
        train_targets: Of recall, fuzzy and noisy: train on every `next` token, as MAD does, or on
            the `answers` alone that an evaluation counts.
        batch_size: Sequences of a training batch, over all ranks.
        eval_batch_size: Sequences of an evaluation batch, over all ranks; changes no result.
        eval_sequences: Sequences of the validation and of the test set.
        seed: Of the training set and its order.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: There is no such problem, or a size is too small for it.
    """

    def __init__(
        self,
        *,
        problem: str = "recall",
        vocab_size: int | None = None,
        seq_len: int | None = None,
        n_train: int | None = None,
        noise_vocab_size: int | None = None,
        noise: float | None = None,
        n_copy: int | None = None,
        motif: int | None = None,
        train_targets: str = "next",
        batch_size: int = 128,
        eval_batch_size: int = 256,
        eval_sequences: int = 1280,
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
        self.settings = settings_of(
            problem,
            {
                "vocab_size": vocab_size,
                "seq_len": seq_len,
                "n_train": n_train,
                "noise_vocab_size": noise_vocab_size,
                "noise": noise,
                "n_copy": n_copy,
                "motif": motif,
            },
        )
        if train_targets not in TRAIN_TARGETS:
            raise DataError(
                f"task.train_targets={train_targets} is none of {', '.join(TRAIN_TARGETS)}"
            )
        self.problem, self._every_next = problem, train_targets == "next"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"problem": self.problem, **asdict(self.settings)}

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        rebuild = self.problem == "compression"
        return {"vocab_size": self.settings.vocab_size, "rebuild": rebuild}

    def training_batch(self, step: int) -> LMBatch:
        """All ranks' sequences of a training step: the next ones of one order after the other."""
        chosen = self.next_of(self.settings.n_train, step)
        return LMBatch(*(x[chosen] for x in self._training_set))

    def evaluation_sets(self, split: str) -> list[LMBatch]:
        """One set."""
        return [self._sequences(self.eval_sequences, split, every_next=False)]

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, which is written in numbers: "3 12 5 9 3" asks for 12.

        Raises:
            DataError: A word is not the number of a token, or nothing follows a prompt.
        """
        if self.problem == "compression":
            raise DataError("task.problem=compression rebuilds its tokens; it continues no prompt")
        return super().encode(text)

    # Parts

    @cached_property
    def _training_set(self) -> LMBatch:
        return self._sequences(
            self.settings.n_train, "train", self.seed, every_next=self._every_next
        )

    def _sequences(self, n: int, *parts: int | str, every_next: bool) -> LMBatch:
        # Another number of training sequences leaves the evaluation as it is.
        generator = seeded(*parts, self.problem, repr(replace(self.settings, n_train=0)))
        return mad_sequences(
            self.problem, n, settings=self.settings, every_next=every_next, generator=generator
        )
