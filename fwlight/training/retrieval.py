"""Training of the synthetic retrieval model."""

import torch.nn.functional as F
from torch import Tensor

from fwlight.training.supervised import SupervisedModule
from fwlight.types import IGNORE_INDEX, RetrievalBatch, Sequences


class RetrievalModule(SupervisedModule):
    """Squared error of every read; arguments as in `SupervisedModule`.

    The loss of a read y is |y - v|^2 / 2, v being the one-hot value last written under the query's
    key: exactly 0.5 for a memory that answers nothing (Schlag et al. 2021b, sec. 6.1).
    """

    def forward(self, batch: RetrievalBatch) -> Tensor:
        """Squared error `[B, N]` of every query; 0 where its target is `IGNORE_INDEX`."""
        y = self.network(batch.keys, batch.values, batch.queries)
        counted = batch.targets != IGNORE_INDEX
        target = F.one_hot(batch.targets.masked_fill(~counted, 0), y.shape[-1])
        return (y - target).square().sum(-1).masked_fill(~counted, 0.0) / 2

    def sequences(self, batch: RetrievalBatch) -> dict[str, Sequences]:
        """The keys."""
        return {"": Sequences(batch.keys)}
