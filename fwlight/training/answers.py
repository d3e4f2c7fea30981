"""Language modelling whose few targets are answers: what the synthetic tasks share."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics import Metric

from fwlight.models import DecoderLM
from fwlight.training.lm import AnyBatch, LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, CarriedBatch


class AnswerAccuracy(Metric):
    """Share of targets that are predicted, over all and by kinds of sequences.

    Counts are added over batches and ranks, so the result is exact.

    Args:
        kinds: Their names.
        unions: Several kinds taken together, by name.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor

    def __init__(
        self, kinds: Sequence[str], unions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self._unions = dict(unions or {})
        for name in ("right", "asked"):
            zeros = torch.zeros(1 + len(self.kinds), dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(
        self,
        predictions: Int[Tensor, "b t"],
        targets: Int[Tensor, "b t"],
        kinds: Int[Tensor, " b"] | Int[Tensor, "b t"],
    ) -> None:
        """Add a batch; predictions are not read where the target is `IGNORE_INDEX`.

        Args:
            predictions: Token ids.
            targets: Token ids.
            kinds: The number of each sequence's kind, or of each target's; any other is of no kind.
        """
        asked = targets != IGNORE_INDEX
        numbers = torch.arange(len(self.kinds), device=kinds.device)[:, None, None]
        kinds = kinds if kinds.ndim == 2 else kinds[:, None]
        of_kind = (kinds == numbers) & asked  # [kinds, b, t]
        right = predictions == targets
        for total, of_all, counted in (
            (self.right, right & asked, of_kind & right),
            (self.asked, asked, of_kind),
        ):
            total += torch.cat((of_all.sum()[None], counted.sum((1, 2))))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of `names`, float64; NaN without targets."""
        kinds = ("", *self.kinds)
        members = [("",), *((kind,) for kind in self.kinds), *self._unions.values()]
        found = {}
        for name, union in zip(self.names, members, strict=True):
            chosen = [kinds.index(kind) for kind in union]
            found[name] = self.right[chosen].sum().double() / self.asked[chosen].sum().double()
        return found

    @property
    def names(self) -> list[str]:
        """`acc`, and one `acc_<kind>` for each kind and each union."""
        return ["acc", *(f"acc_{kind}" for kind in (*self.kinds, *self._unions))]


class AnswerModule(LanguageModelingModule):
    """Trains as for language modelling, and logs `{val,test}/acc` beside the loss.

    Only positions with a target pass the output layer.

    Args:
        network: As `fwlight.models.DecoderLM`.
        optimizer: How to train it.
        max_steps: Number of updates of the whole training.
        kinds: Kinds of sequences, each of which has an `acc_<kind>`; see `kinds_of`.
        unions: As of `AnswerAccuracy`.
    """

    shardable = False

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig,
        max_steps: int,
        kinds: Sequence[str] = (),
        unions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer, max_steps=max_steps)
        self.accuracy = AnswerAccuracy(kinds, unions)
        self.monitored = ("val/loss", *(f"val/{name}" for name in self.accuracy.names))

    def kinds_of(self, batch: Any) -> Tensor:
        """Return kinds as `AnswerAccuracy` takes them; a subclass with kinds says."""
        return batch.targets.new_zeros(len(batch.targets))

    def answer_metrics(self) -> dict[str, float]:
        """Return what is logged of the answers that were added up."""
        return {name: value.item() for name, value in self.accuracy.compute().items()}

    def forward(self, batch: AnyBatch) -> Tensor:
        """Negative log-likelihood `[B, T]` of every target; 0 where it is `IGNORE_INDEX`."""
        return self._nll(batch, self._hidden(batch))

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, also after an evaluation that was broken off."""
        super().on_validation_epoch_start()
        self.accuracy.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        super().on_test_epoch_start()
        self.accuracy.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch."""
        self._evaluate(batch)

    def _hidden(self, batch: AnyBatch) -> Tensor:
        """Return the hidden states of the asked positions `[1, N, d_model]`."""
        padding = self.padding_of(batch)
        masks: dict[str, Any] = {} if padding is None else {"padding_mask": padding}
        hidden, _ = cast(DecoderLM, self.network).features(batch.inputs, **masks)
        return hidden[batch.targets != IGNORE_INDEX][None]

    def _nll(self, batch: AnyBatch, hidden: Tensor) -> Tensor:
        asked = batch.targets != IGNORE_INDEX
        nll = cast(DecoderLM, self.network).nll(hidden, batch.targets[asked][None])
        return nll.new_zeros(asked.shape).masked_scatter(asked, nll)

    def _evaluate(self, batch: AnyBatch) -> None:
        asked = batch.targets != IGNORE_INDEX
        carried = isinstance(batch, CarriedBatch)
        hidden = self._carry(batch)[asked][None] if carried else self._hidden(batch)
        self.evaluation.update(self._nll(batch, hidden), batch.targets)
        answers = cast(DecoderLM, self.network).output(hidden).argmax(-1)
        predictions = torch.full_like(batch.targets, IGNORE_INDEX)
        predictions = predictions.masked_scatter(asked, answers)
        self.accuracy.update(predictions, batch.targets, self.kinds_of(batch))

    def _report(self, split: str) -> None:
        accuracy = {f"{split}/{name}": value for name, value in self.answer_metrics().items()}
        self.record(accuracy, self.trainer.global_step)
        super()._report(split)
