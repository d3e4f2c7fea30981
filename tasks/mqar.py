"""Multi-query associative recall (Zoology, Arora et al. 2023, arXiv 2312.04927) as a task."""

from collections.abc import Sequence
from typing import Any

import torch

from fwlight.types import DataError, LMBatch
from tasks.answers import AnswersDataModule
from tasks.draws import seeded
from tasks.recall import recall_sequences
from tasks.recall_sizes import check_pairs


class MQARDataModule(AnswersDataModule):
    """Key-value pairs and later queries; see `tasks.recall.recall_sequences` for a sequence.

    Training draws new batches without end, each with one of the numbers of pairs; the evaluation
    sets hold equally many sequences of each number and are the same for every seed. So the number
    of a sequence's targets tells its number of pairs.

    Args:
        vocab_size: Number of token ids: 0, keys below the half, values from there on.
        seq_len: Tokens of a sequence.
        n_pairs: Numbers of pairs.
        power: Exponent + 1 of the gaps' power law; 1 is uniform.
        batch_size: Sequences of a training batch, over all ranks.
        eval_batch_size: Sequences of an evaluation batch, over all ranks; changes no result.
        eval_sequences: Sequences of each number of pairs in the validation and in the test set.
        seed: Of the training data.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A size is too small for what it has to hold.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 128,
        seq_len: int = 64,
        n_pairs: Sequence[int] = (4, 8, 16),
        power: float = 0.01,
        batch_size: int = 32,
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
        check_pairs(n_pairs, seq_len=seq_len, vocab_size=vocab_size)
        if power <= 0:
            raise DataError(f"task.power={power} must be positive")
        self._settings: dict[str, Any] = {
            "seq_len": seq_len,
            "vocab_size": vocab_size,
            "power": power,
        }
        self.n_pairs = tuple(n_pairs)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {**self._settings, "n_pairs": list(self.n_pairs)}

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        return {"vocab_size": self._settings["vocab_size"]}

    def training_batch(self, step: int) -> LMBatch:
        """All ranks' sequences of a training step; their number of pairs is drawn with them."""
        generator = seeded("train", self.seed, step)
        choice = int(torch.randint(len(self.n_pairs), (), generator=generator))
        return recall_sequences(
            self.batch_size, n_pairs=self.n_pairs[choice], generator=generator, **self._settings
        )

    def evaluation_sets(self, split: str) -> list[LMBatch]:
        """Equally many sequences of each number of pairs."""
        return [
            recall_sequences(
                self.eval_sequences,
                n_pairs=n_pairs,
                generator=seeded(split, n_pairs),
                **self._settings,
            )
            for n_pairs in self.n_pairs
        ]
