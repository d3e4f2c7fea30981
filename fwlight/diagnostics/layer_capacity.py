"""How many keys like its own the memory of a layer holds."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fwlight.diagnostics.layers import Layer
from fwlight.diagnostics.measured import measured_capacity
from fwlight.diagnostics.recall import read_state
from fwlight.diagnostics.statistics import Statistics
from fwlight.diagnostics.written import Written
from fwlight.mixers import Gates


def key_statistics(w: Written) -> Statistics:
    """Return count, sum and outer products of the keys before the feature map, by head."""
    assert w.projected_k is not None
    k = w.projected_k.double()
    counted = torch.ones_like(k[..., :1])
    if w.padding_mask is not None:
        counted = counted.masked_fill(w.padding_mask[:, None, :, None], 0.0)
        k = torch.where(counted > 0, k, 0.0)
    sums = {
        "keys/count": counted.sum((0, 2, 3)),
        "keys/sum": k.sum((0, 2)),
        "keys/outer": torch.einsum("bhti,bhtj->hij", k, k),
    }
    return Statistics(sums, {})


@torch.no_grad()
def layer_capacity(
    layer: Layer, statistics: Statistics, *, draws: int = 20, limit: int
) -> Int[Tensor, " h"]:
    """Return by head how many Gaussian keys like the layer's own are told apart.

    `measured_capacity` under this layer's feature map, rule and norms, every write with beta = 1;
    keys have the mean and covariance of `key_statistics`.

    Args:
        layer: A fast weight memory.
        statistics: Of its keys.
        draws: Sequences to average over.
        limit: Largest number tried.
    """
    count = statistics.sums["keys/count"].clamp(min=1)
    mean = statistics.sums["keys/sum"] / count[:, None]
    covariance = statistics.sums["keys/outer"] / count[:, None, None]
    covariance = covariance - mean[:, :, None] * mean[:, None]
    memory: Any = layer.memory

    def write_and_read(k: Tensor, values: Tensor) -> Tensor:
        beta = torch.ones_like(k[..., 0]) if memory.has_beta else None
        state = memory.write(k, values, Gates(beta))
        # Without `out_norm`, which is made for values of the layer's own size.
        q = memory.queries(k)
        return read_state(q, state.weights, key_sum=state.key_sum, eps=memory.read_eps)

    return measured_capacity(
        write_and_read, mean.float(), covariance.float(), draws=draws, limit=limit
    )
