"""How softmax attention looks back, beside which a memory of constant size is judged."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.statistics import LOG_EDGES, Statistics, describe, merge

QUANTITIES = ("entropy", "span", "distance")


class Attended(NamedTuple):
    """One read of softmax attention."""

    q: Float[Tensor, "b h n d"]
    """Queries."""
    k: Float[Tensor, "b h s d"]
    """Keys."""
    causal: bool
    """The queries are the last n of the s positions, and see what is not after them."""
    padding_mask: Bool[Tensor, "b s"] | None = None
    """True where a key is padding."""
    query_mask: Bool[Tensor, "b n"] | None = None
    """True where a query is padding: it does not count."""
    seen: Bool[Tensor, "b n s"] | None = None
    """Which keys each query sees, where a row is several sequences."""
    kernel: Callable[..., Tensor] | None = None
    """Makes weights of q, k and a mask; None is softmax attention's own."""


def softmax_statistics(read: Attended) -> Statistics:
    """Return the statistics of every query's weights a, softmax(k q / sqrt(d)) or a kernel's.

    - entropy: -sum_s a_s ln a_s in nats.
    - span: exp(entropy), the number of positions among which so much attention would be spread
      evenly: 1 for a single one.
    - distance: sum_s a_s |t - s|, how far back it looks; for queries of another sequence positions
      are counted from the starts of both.
    """
    q, k, causal, padding_mask, query_mask, seen, kernel = read
    n, s = q.shape[2], k.shape[2]
    visible = torch.ones(n, s, dtype=torch.bool, device=q.device)
    first = s - n if causal else 0
    if causal:
        visible = visible.tril(first)
    visible = visible.expand(q.shape[0], 1, n, s)
    if seen is not None:
        visible = seen[:, None]
    if padding_mask is not None:
        visible = visible & ~padding_mask[:, None, None]
    counted = visible.any(-1).expand(q.shape[:3])
    if query_mask is not None:
        counted = counted & ~query_mask[:, None]
    # Rows that see nothing are not counted; 0 instead of 0 / 0 keeps them out of sums.
    q, k = q.double(), k.double()
    if kernel is None:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
    else:
        weights = kernel(q, k, visible)
    entropy = torch.special.entr(weights).sum(-1)
    places = torch.arange(s, device=q.device)
    apart = (torch.arange(first, first + n, device=q.device)[:, None] - places).abs()
    found = (entropy, entropy.exp(), (weights * apart).sum(-1))
    parts = zip(QUANTITIES, found, strict=True)
    return merge(*(describe(name, x, counted, edges=LOG_EDGES) for name, x in parts))
