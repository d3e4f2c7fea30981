"""What models lose, sequence by sequence, so that two can be compared."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fwlight.evaluation import undisturbed
from fwlight.types import IGNORE_INDEX


class SequenceLosses(NamedTuple):
    """Sums by sequence."""

    nll: Float[Tensor, " n"]
    """Negative log-likelihood of all targets, in nats."""
    targets: Float[Tensor, " n"]
    """How many they are."""
    asked: Int[Tensor, " m"]
    """All targets, sequence after sequence."""

    @property
    def mean(self) -> float:
        """Nats per target; NaN of nothing."""
        return float(self.nll.sum() / self.targets.sum())


def sequence_losses(module: Any, batches: Iterable[Any]) -> SequenceLosses:
    """Return the losses of all sequences, and nothing of a task that has none by token.

    Every row starts from an empty memory.

    Args:
        module: As `intervene` takes it.
        batches: With `targets`; others are left out.
    """
    nll, targets = [torch.zeros(0).double()], [torch.zeros(0).double()]
    ids = [torch.zeros(0, dtype=torch.int64)]
    with undisturbed(module.network):
        for batch in batches:
            if not hasattr(batch, "targets"):  # agents have none
                continue
            found = module(batch)
            if found.shape != batch.targets.shape or found.ndim != 2:
                continue
            asked = batch.targets != IGNORE_INDEX
            nll.append(found.double().sum(1).cpu())
            targets.append(asked.sum(1).double().cpu())
            ids.append(batch.targets[asked].cpu())
    return SequenceLosses(torch.cat(nll), torch.cat(targets), torch.cat(ids))


def difference(a: SequenceLosses, b: SequenceLosses) -> tuple[float, float] | None:
    """Return by how many nats per target b loses more, and the standard error over sequences.

    None unless both have the same targets in at least two sequences.
    """
    same = torch.equal(a.targets, b.targets) and torch.equal(a.asked, b.asked)
    if len(a.targets) < 2 or not same or not a.targets.sum():
        return None
    d, n = b.nll - a.nll, a.targets
    mean = float(d.sum() / n.sum())
    sequences = int((n > 0).sum())
    spread = (d - mean * n).square().sum() * sequences / max(1, sequences - 1)
    return mean, math.sqrt(float(spread)) / float(n.sum())


def in_words(losses: SequenceLosses) -> str:
    """Return the loss as text, to the thousandth of a nat."""
    return f"loss {losses.mean:.3f} nats" if len(losses.nll) else "no loss by token"
