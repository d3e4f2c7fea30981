"""The synthetic retrieval tasks: how much a memory holds, and whether it can replace."""

from typing import Any

import lightning
import torch
from torch import Generator, Tensor

from fwlight.types import IGNORE_INDEX, DataError, RetrievalBatch
from tasks.draws import EvalDraw, TrainDraws, rows, seeded
from tasks.position import refuse_other_data
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least

SETTINGS = ("capacity", "update")
EVAL_LENGTHS = ("training", "n_keys")


class RetrievalDataModule(lightning.LightningDataModule):
    """Sequences of key-value associations and queries, drawn from (seed, step).

    Schlag et al. 2021b, sec. 6.1, with S = `n_keys` different keys and values:

        capacity (setting 1)   every key once with a value of its own, T = S
            keys 2 0 1    values 1 2 0    query 0 -> 2
        update (setting 2)     both drawn with replacement, T = 2 S; the last value counts
            keys 1 0 1 2 1 2    values 0 2 2 0 1 1    query 1 -> 1

    A training sequence has one query, the key at a position drawn uniformly. An evaluation reads
    every key of `eval_sequences` sequences.

    Args:
        setting: `capacity` or `update`.
        n_keys: Number S of different keys, and of different values.
        seq_len: Another length T of update sequences; None is 2 S.
        batch_size: Sequences of a training batch, over all ranks.
        eval_sequences: Sequences of an evaluation.
        eval_length: Length of validation sequences: that of `training`, or `n_keys`, with which
            the reference code evaluates setting 2 too (63 % of the keys occur then). Test
            sequences always have the training length.
        max_queries: Read only the first so many keys of an evaluation sequence, by their number;
            200 in the reference code, None for all.
        redraw_eval: Evaluate on new sequences every time, as the reference code does, or always on
            the same.
        seed: Where all draws come from.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A size below 1 or an unknown option.
    """

    def __init__(
        self,
        *,
        setting: str = "capacity",
        n_keys: int = 40,
        seq_len: int | None = None,
        batch_size: int = 32,
        eval_sequences: int = 20,
        eval_length: str = "training",
        max_queries: int | None = None,
        redraw_eval: bool = False,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        for name, value, choices in (
            ("setting", setting, SETTINGS),
            ("eval_length", eval_length, EVAL_LENGTHS),
        ):
            if value not in choices:
                raise DataError(f"task.{name}={value} is none of {', '.join(choices)}")
        check_least(1, n_keys=n_keys, seq_len=seq_len, batch_size=batch_size)
        check_least(1, eval_sequences=eval_sequences, max_queries=max_queries)
        self.setting, self.n_keys, self.seed = setting, n_keys, seed
        self.batch_size, self.eval_sequences = batch_size, eval_sequences
        self.max_queries, self.redraw_eval = max_queries, redraw_eval
        if setting == "capacity" and seq_len not in (None, n_keys):
            raise DataError(
                f"task.seq_len={seq_len}: task.setting=capacity writes each of {n_keys} "
                "keys once; leave it out, or choose task.setting=update"
            )
        self.seq_len = seq_len or (n_keys if setting == "capacity" else 2 * n_keys)
        self.eval_seq_len = n_keys if eval_length == "n_keys" else self.seq_len

    # Lightning's hooks

    def train_dataloader(self) -> TrainDraws[RetrievalBatch]:
        """This rank's share of every training batch."""
        return TrainDraws(
            self.training_batch,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalDraw[RetrievalBatch]:
        """This rank's share of the validation sequences."""
        return self._evaluation("val", self.eval_seq_len, redraw=self.redraw_eval)

    def test_dataloader(self) -> EvalDraw[RetrievalBatch]:
        """This rank's share of the test sequences, which are as long as those of training."""
        return self._evaluation("test", self.seq_len, redraw=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"setting": self.setting, "n_keys": self.n_keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data.

        Raises:
            DataError: It was another task.
        """
        refuse_other_data(state_dict, self.state_dict())

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        return {"n_keys": self.n_keys}

    def training_batch(self, step: int) -> RetrievalBatch:
        """All ranks' sequences of a training step, with one query each."""
        random = seeded(self.seed, "train", step)
        keys, values = self._sequences(self.batch_size, self.seq_len, random)
        position = torch.randint(self.seq_len, (len(keys), 1), generator=random)
        queries = keys.gather(1, position)
        last = (keys == queries) * torch.arange(self.seq_len)
        targets = values.gather(1, last.argmax(1, keepdim=True))
        return RetrievalBatch(keys, values, queries, targets)

    def evaluation_batch(self, split: str, step: int, *, seq_len: int) -> RetrievalBatch:
        """All ranks' sequences of an evaluation, with a query for every key that occurs."""
        random = seeded(self.seed, split, step)
        keys, values = self._sequences(self.eval_sequences, seq_len, random)
        places = torch.arange(keys.shape[1]).expand_as(keys)
        last = torch.full((len(keys), self.n_keys), -1)
        last = last.scatter_reduce(1, keys, places, "amax")
        occurs = last >= 0
        queries = (~occurs).int().argsort(dim=1, stable=True)[:, : self.max_queries]
        queries = queries[:, : int(occurs.sum(1).max())]
        targets = values.gather(1, last.clamp(min=0)).masked_fill(~occurs, IGNORE_INDEX)
        return RetrievalBatch(keys, values, queries, targets.gather(1, queries))

    # Parts

    def _sequences(self, n: int, length: int, random: Generator) -> tuple[Tensor, Tensor]:
        if self.setting == "update":
            drawn = torch.randint(self.n_keys, (2, n, length), generator=random)
        else:
            drawn = torch.rand(2, n, length, generator=random).argsort(-1)
        keys, values = drawn
        return keys, values

    def _evaluation(self, split: str, seq_len: int, *, redraw: bool) -> EvalDraw[RetrievalBatch]:
        rank, world_size = ranks(self.trainer).values()
        if self.eval_sequences < world_size:
            raise DataError(
                f"task.eval_sequences={self.eval_sequences} are fewer than the {world_size} "
                "processes; every process needs one"
            )

        def draw() -> RetrievalBatch:
            step = self.trainer.global_step if redraw and self.trainer is not None else 0
            batch = self.evaluation_batch(split, step, seq_len=seq_len)
            return rows(batch, slice(rank, None, world_size))

        return EvalDraw(draw)
