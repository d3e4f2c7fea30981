"""Multi-query associative recall: sequences, and loaders over ranks for training and evaluation.

The task is that of Zoology (Arora et al. 2023, arXiv 2312.04927, sec. 4): pairs of key and value,
then every key once more, where its value is to be predicted.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fwlight.types import IGNORE_INDEX, DataError, LMBatch

EPOCH_BATCHES = 1000
"""What counts as an epoch of data without end."""


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


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator that is a function of all parts."""
    # A CPU generator keeps 32 bits of its seed: shifted and added, some parts would be lost.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class TrainRecall:
    """New batches `[B/W, T]` without end; the s-th one is a function of (seed, s).

    Each batch has one number of pairs, drawn from `n_pairs` with its sequences. Rank r of W takes
    rows [r B/W, (r+1) B/W) of it. The position, which no world size changes, moves when a batch is
    taken, however training is cut into iterations, epochs and resumes.

    Args:
        batch_size: Sequences over all ranks.
        n_pairs: Numbers of pairs to choose from.
        seed: Of the data.
        rank: This process among `world_size`.
        world_size: Number of processes.
        epoch_limit: Begin again after so many batches, as Lightning's `limit_train_batches` ends an
            epoch; a share (float) is one of `EPOCH_BATCHES`, and 1.0 never begins again.
        seq_len: As in `recall_sequences`.
        vocab_size: Likewise.
        power: Likewise.

    Raises:
        DataError: `batch_size` does not divide over the ranks.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        n_pairs: Sequence[int],
        seed: int,
        seq_len: int,
        vocab_size: int,
        power: float,
        rank: int = 0,
        world_size: int = 1,
        epoch_limit: int | float = 1.0,
    ) -> None:
        if batch_size % world_size:
            raise DataError(
                f"task.batch_size={batch_size} sequences cannot be shared evenly by "
                f"{world_size} processes; choose a multiple of {world_size}"
            )
        self.batch_size, self.n_pairs, self.seed = batch_size, tuple(n_pairs), seed
        self._sizes = {"seq_len": seq_len, "vocab_size": vocab_size}
        self._power = power
        per_rank = batch_size // world_size
        self._mine = slice(rank * per_rank, (rank + 1) * per_rank)
        self._cycle = None
        if epoch_limit != 1.0 or isinstance(epoch_limit, int):
            share = isinstance(epoch_limit, float)
            self._cycle = max(1, int(EPOCH_BATCHES * epoch_limit) if share else int(epoch_limit))
        self._position = 0

    def __len__(self) -> int:
        # Without a length Lightning would fetch one batch ahead, and store a position too far on.
        return EPOCH_BATCHES

    def __iter__(self) -> Iterator[LMBatch]:
        # Only batches that were taken move the position: Lightning may break an iteration off.
        for _ in range(EPOCH_BATCHES):
            step = self._position
            self._position = step + 1 if self._cycle is None else (step + 1) % self._cycle
            yield self._batch(step)

    def _batch(self, step: int) -> LMBatch:
        generator = seeded("train", self.seed, step)
        choice = int(torch.randint(len(self.n_pairs), (), generator=generator))
        batch = recall_sequences(
            self.batch_size,
            n_pairs=self.n_pairs[choice],
            power=self._power,
            generator=generator,
            **self._sizes,
        )
        return LMBatch(batch.inputs[self._mine], batch.targets[self._mine])

    def state_dict(self) -> dict[str, int]:
        """The next batch, and what a batch means."""
        return {"step": self._position, "batch_size": self.batch_size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the stored batch.

        Raises:
            DataError: It was counted with another `batch_size` or `seed`.
        """
        for key in ("batch_size", "seed"):
            if state[key] != getattr(self, key):
                raise DataError(
                    f"the checkpoint was trained with task.{key}={state[key]}, now it is "
                    f"{getattr(self, key)}: its place in the data is lost; give the old value"
                )
        self._position = state["step"]


class EvalRecall:
    """Batches of a fixed set in which every sequence is counted once, whatever the world size.

    What the last batches lack is padded with `IGNORE_INDEX` targets; each process gets equally many
    batches.

    Args:
        parts: One set of sequences for each number of pairs.
        batch_size: Sequences over all ranks, rounded up to a multiple of `world_size`.
        rank: This process among `world_size`.
        world_size: Number of processes.
    """

    def __init__(
        self, parts: Sequence[LMBatch], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        rows = -(-batch_size // world_size)
        self._batches = []
        for inputs, targets in parts:
            for start in range(0, len(inputs), rows * world_size):
                mine = slice(start + rank * rows, start + (rank + 1) * rows)
                self._batches.append(_padded(inputs[mine], targets[mine], rows))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[LMBatch]:
        return iter(self._batches)


def _padded(inputs: Tensor, targets: Tensor, rows: int) -> LMBatch:
    lacking = (rows - len(inputs), inputs.shape[1])
    return LMBatch(
        torch.cat([inputs, inputs.new_zeros(lacking)]),
        torch.cat([targets, targets.new_full(lacking, IGNORE_INDEX)]),
    )
