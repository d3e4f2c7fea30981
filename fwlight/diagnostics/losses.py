"""What models lose, sequence by sequence, so that two can be compared."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.evaluation import undisturbed
from fwlight.types import IGNORE_INDEX


class SequenceLosses(NamedTuple):
    """Sums by sequence."""

    nll: Float[Tensor, " n"]
    """Negative log-likelihood of all targets, in nats."""
    targets: Float[Tensor, " n"]
    """How many they are."""

    @property
    def mean(self) -> float:
        """Nats per target; NaN of nothing."""
        return float(self.nll.sum() / self.targets.sum())


def sequence_losses(module: Any, batches: Iterable[Any]) -> SequenceLosses:
    """Return the losses of all sequences, and nothing of a task that has none by token.

    Args:
        module: As `intervene` takes it.
        batches: With `targets`; others are left out.
    """
    nll, targets = [torch.zeros(0).double()], [torch.zeros(0).double()]
    with undisturbed(module.network):
        for batch in batches:
            if not hasattr(batch, "targets"):  # agents have none
                continue
            found = module(batch)
            if found.shape != batch.targets.shape or found.ndim != 2:
                continue
            nll.append(found.double().sum(1).cpu())
            targets.append((batch.targets != IGNORE_INDEX).sum(1).double().cpu())
    return SequenceLosses(torch.cat(nll), torch.cat(targets))


def difference(a: SequenceLosses, b: SequenceLosses) -> tuple[float, float] | None:
    """Return by how many nats per target b loses more, and the standard error over sequences.

    None unless both have the same numbers of targets in at least two sequences.
    """
    if len(a.targets) < 2 or not torch.equal(a.targets, b.targets) or not a.targets.sum():
        return None
    d, n = b.nll - a.nll, a.targets
    mean = float(d.sum() / n.sum())
    sequences = int((n > 0).sum())
    spread = (d - mean * n).square().sum() * sequences / max(1, sequences - 1)
    return mean, math.sqrt(float(spread)) / float(n.sum())


def in_words(losses: SequenceLosses) -> str:
    """Return the loss as text, to the thousandth of a nat."""
    return f"loss {losses.mean:.3f} nats" if len(losses.nll) else "no loss by token"
