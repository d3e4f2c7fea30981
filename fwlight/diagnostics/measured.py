"""How many associations a memory holds, found by writing more and more of them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

WriteAndRead = Callable[[Tensor, Tensor], Tensor]


def measured_capacity(
    write_and_read: WriteAndRead,
    mean: Float[Tensor, "h d"],
    covariance: Float[Tensor, "h d d"],
    *,
    draws: int = 20,
    rate: float = 0.99,
    limit: int = 4096,
    seed: int = 0,
) -> Int[Tensor, " h"]:
    """Return by head the largest N of which `rate` are identified; `limit` if more.

    N Gaussian keys, like those of the layer before its feature map, are written with N different
    one-hot values and read back; a read is right if its largest component is its value's. N is
    doubled until that fails and then bisected. The draws are the same at every N, the first N keys
    of one sequence each. The sum rule has no limit on keys of one length, each of which is nearest
    to itself.

    Args:
        write_and_read: Takes keys `[1, H, N, D]` and values `[1, H, N, N]`, writes all and returns
            what the keys read, `[1, H, N, N]`: this layer's map, rule and norms.
        mean: Of the layer's keys before the feature map.
        covariance: Of the same.
        draws: Sequences to average over.
        rate: Least share of right reads.
        limit: Largest N tried.
        seed: Of the draws.
    """
    root = _root(covariance)
    held: dict[int, Tensor] = {}

    def holds(n: int, head: int) -> bool:
        if n not in held:
            shares = [
                _identified(write_and_read, mean, root, n, seed + draw) for draw in range(draws)
            ]
            # In whole numbers of right reads, so that 99 of 100 are 99 %.
            held[n] = torch.stack(shares).sum(0) >= rate * n * draws - 1e-6
        return bool(held[n][head])

    return torch.tensor([_largest(lambda n, h=h: holds(n, h), limit) for h in range(len(mean))])


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    low, high = 0, 1
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _identified(
    write_and_read: WriteAndRead, mean: Tensor, root: Tensor, n: int, seed: int
) -> Tensor:
    """Return the number of right reads of every head."""
    generator = torch.Generator().manual_seed(seed)
    # Drawn on the CPU and key by key: the same keys on every device and for every n.
    noise = torch.stack([torch.randn(mean.shape, generator=generator) for _ in range(n)], dim=1)
    k = mean[:, None] + noise.to(root) @ root.mT
    values = torch.eye(n, dtype=k.dtype, device=k.device).expand(1, len(mean), n, n)
    reads = write_and_read(k[None], values)
    return (reads[0].argmax(-1) == torch.arange(n, device=reads.device)).sum(-1)


def _root(covariance: Tensor) -> Tensor:
    """Return A with A A^T = covariance, which may be singular."""
    energies, directions = torch.linalg.eigh(covariance.double())
    return (directions * energies.clamp(min=0).sqrt()[..., None, :]).to(covariance.dtype)
