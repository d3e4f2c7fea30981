"""catbAbI: how many questions of a stream are answered."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from fwlight.training.answers import AnswerAccuracy, AnswerModule
from fwlight.training.lm import AnyBatch
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, CarriedBatch, Sequences

N_TASKS = 20


class QuestionAccuracy(AnswerAccuracy):
    """Share of questions that are answered, over all and by tasks; other targets do not count."""

    def update(
        self,
        predictions: Int[Tensor, "b t"],
        targets: Int[Tensor, "b t"],
        kinds: Int[Tensor, "b t"],
    ) -> None:
        """Add a batch, as `AnswerAccuracy` does; a kind below 0 is no question."""
        super().update(predictions, targets.masked_fill(kinds < 0, IGNORE_INDEX), kinds)

    @property
    def names(self) -> list[str]:
        """`acc_question`, and `acc_<kind>` each."""
        return ["acc_question", *super().names[1:]]


class CatbabiModule(AnswerModule):
    """Trains on a stream of stories, and logs `{val,test}/acc_question` and `acc_task_<number>`.

    The state is carried through all of training and never emptied, as in Schlag et al. 2021a;
    evaluations start from nothing. Padding leaves no trace in it.

    Args:
        network: As `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        pad: The id of what fills rows up.
        tasks: Numbers of those that are told apart; None: 1 to 20.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        pad: int,
        tasks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self._numbers = tuple(range(1, N_TASKS + 1) if tasks is None else tasks)
        self.accuracy = QuestionAccuracy([f"task_{number}" for number in self._numbers])
        self.monitored = ("val/loss", *(f"val/{name}" for name in self.accuracy.names))
        self._pad = pad

    def kinds_of(self, batch: Any) -> Int[Tensor, "b t"]:
        """Return which of the tasks a question is of, of the positions that are one; else -1."""
        assert isinstance(batch, CarriedBatch)
        assert batch.kinds is not None
        places = batch.kinds.new_tensor([-1, *(self._place(n) for n in range(1, N_TASKS + 1))])
        return places[batch.kinds]

    def padding_of(self, batch: AnyBatch) -> Bool[Tensor, "b t"] | None:
        """Return where rows are over; None if none is."""
        padding = batch.inputs == self._pad
        return padding if bool(padding.any()) else None

    def answer_metrics(self) -> dict[str, float]:
        """Leave out the tasks that an evaluation has no questions of."""
        return {name: x for name, x in super().answer_metrics().items() if not math.isnan(x)}

    def sequences(self, batch: AnyBatch) -> dict[str, Sequences]:
        """The inputs."""
        padding = self.padding_of(batch)
        return {"": Sequences(batch.inputs, padding, padding)}

    def _place(self, number: int) -> int:
        """Return the place of a task; of one that is not told apart one that no kind has."""
        return self._numbers.index(number) if number in self._numbers else len(self._numbers)
