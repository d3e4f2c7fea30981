"""Code execution: how many programs are followed to the end."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics import Metric

from fwlight.training.answers import AnswerModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, LMBatch


class ExecutionAccuracy(Metric):
    """Shares of what is right: of whole programs, of prints, of positions without one, and of all.

    Counts are added over batches and ranks, so the result is exact.

    Args:
        lengths: Numbers of statements, of whose programs there are shares too.
        blank: What is answered where nothing is printed.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor

    def __init__(self, lengths: Sequence[int], *, blank: int) -> None:
        super().__init__()
        self.lengths, self._blank = tuple(lengths), blank
        for name in ("right", "asked"):
            zeros = torch.zeros(1 + len(self.lengths), 4, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self,
        predictions: Int[Tensor, "b t"],
        targets: Int[Tensor, "b t"],
        statements: Int[Tensor, " b"],
    ) -> None:
        """Add a batch; rows without a target count nowhere."""
        asked = targets != IGNORE_INDEX
        right = (predictions == targets) & asked
        blank = targets == self._blank
        kinds = (asked & ~blank, blank, asked)
        whole = asked.any(1) & (right == asked).all(1)
        lengths = torch.tensor(self.lengths, device=statements.device)
        groups = torch.cat([torch.ones_like(statements)[None], statements == lengths[:, None]])
        for total, programs, positions in (
            (self.right, whole, [right & kind for kind in kinds]),
            (self.asked, asked.any(1), kinds),
        ):
            counts = torch.stack([programs, *(x.sum(1) for x in positions)], dim=1)
            total += groups.long() @ counts.long()

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of `names`, float64; NaN where nothing is asked."""
        shares = self.right.double() / self.asked.double()
        return dict(zip(self.names, shares.flatten(), strict=True))

    @property
    def names(self) -> list[str]:
        """`acc_sequence`, `acc_print`, `acc_blank`, `acc`; also with `_statements_<n>` each."""
        kinds = ("acc_sequence", "acc_print", "acc_blank", "acc")
        groups = ("", *(f"_statements_{n}" for n in self.lengths))
        return [f"{kind}{group}" for group in groups for kind in kinds]


class CodeExecutionModule(AnswerModule):
    """Trains on the answer at every token, and logs shares of right ones beside the loss.

    `{val,test}/{acc_sequence,acc_print,acc_blank,acc}`: whole programs, executed prints, all other
    positions, and all; with several `lengths` each also by the number of statements.

    Args:
        network: As `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        lengths: Numbers of statements that are told apart; None: one, which is not.
        blank: The id of what is answered where nothing is printed.
        end: The id of the token that ends a statement.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        lengths: Sequence[int] | None = None,
        blank: int,
        end: int,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.accuracy = ExecutionAccuracy(lengths or (), blank=blank)
        self.monitored = ("val/loss", *(f"val/{name}" for name in self.accuracy.names))
        self._end = end

    def kinds_of(self, batch: LMBatch) -> Int[Tensor, " b"]:
        """Return the number of statements."""
        return (batch.inputs == self._end).sum(1)

    def answer_metrics(self) -> dict[str, float]:
        """Leave out the lengths that an evaluation has no programs of."""
        return {name: x for name, x in super().answer_metrics().items() if not math.isnan(x)}
