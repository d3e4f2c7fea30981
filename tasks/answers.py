"""What tasks share whose sequences are drawn, and whose few targets are answers in numbers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import lightning
from torch import Tensor

from fwlight.types import DataError, LMBatch
from tasks.draws import EvalSets, TrainDraws, next_of
from tasks.position import refuse_other_data
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least


class AnswersDataModule(lightning.LightningDataModule, ABC):
    """Training batches without end and fixed evaluation sets; subclasses draw them.

    Args:
        batch_size: Sequences of a training batch, over all ranks.
        eval_batch_size: Sequences of an evaluation batch, over all ranks; changes no result.
        eval_sequences: How many a subclass draws for a set.
        seed: Of the training data.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A size is below 1.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        eval_sequences: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_least(1, eval_sequences=eval_sequences)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.eval_sequences, self.seed, self.num_workers = eval_sequences, seed, num_workers

    words: tuple[str, ...] = ()
    """What tokens are called in prompts, in the order of their ids; none: by their numbers."""

    @property
    @abstractmethod
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with; of it, `vocab_size` bounds the numbers of prompts."""

    @abstractmethod
    def training_batch(self, step: int) -> LMBatch:
        """All ranks' sequences of a training step, from `seed` and its number."""

    @abstractmethod
    def evaluation_sets(self, split: str) -> Sequence[LMBatch]:
        """The sequences of split "valid" or "test", in parts of one length, for every seed."""

    # Lightning's hooks

    def train_dataloader(self) -> TrainDraws[LMBatch]:
        """This rank's rows of the training batches."""
        return TrainDraws(
            self.training_batch,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalSets[LMBatch]:
        """This rank's share of the validation set."""
        return self._evaluation("valid")

    def test_dataloader(self) -> EvalSets[LMBatch]:
        """This rank's share of the test set."""
        return self._evaluation("test")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data.

        Raises:
            DataError: The sequences are others.
        """
        refuse_other_data(state_dict, self.state_dict())

    # Prompts

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, which is written in numbers, "4 290 7", or in `words`.

        Raises:
            DataError: A word is not a token, or the number of one.
        """
        words, size = text.split(), self.network_sizes["vocab_size"]
        if self.words:
            ids = {word: i for i, word in enumerate(self.words)}
            for word in words:
                if word not in ids:
                    raise DataError(f"{word!r} in the prompt is no word of this task")
            return [ids[word] for word in words]
        for word in words:
            if not word.isdecimal() or int(word) >= size:
                raise DataError(f"{word!r} in the prompt is not a number from 0 to {size - 1}")
        return [int(word) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids as words, or numbers, with spaces between."""
        return " ".join(self.words[i] if self.words else str(i) for i in ids)

    # Parts

    def next_of(self, n: int, step: int) -> Tensor:
        """Return which of n sequences are a step's, one order of all after the other."""
        return next_of(n, step, batch_size=self.batch_size, seed=self.seed)

    def _evaluation(self, split: str) -> EvalSets[LMBatch]:
        sets = self.evaluation_sets(split)
        return EvalSets(sets, batch_size=self.eval_batch_size, **ranks(self.trainer))
