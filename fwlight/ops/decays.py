"""Decays within a chunk of tokens: what later reads find of a write, and how that differentiates.

Shapes are `[G, C, D]`: G = batch times heads, C tokens of a chunk. With logs g_t <= 0, one a token
`[G, C, 1]` or one a key channel `[G, C, K]`, a read r_i finds of the write under k_j, j <= i,

    M_ij = sum_c r_ic exp(g_{j+1,c} + ... + g_ic) k_jc

Every exponent is summed from its own terms, which have one sign: nothing overflows or cancels,
and g_t = -inf, which empties the memory, gives factors of zero and gradients of zero. The
gradient of g_t sums what crosses token t: the pairs j < t <= i, reads at i >= t of the state
before the chunk, writes j < t in the state after it, and what of the one is in the other.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 8
"""Tokens between which a decay by channels is taken pair by pair; products take the others."""


def remaining(decay: Tensor | None, k: Tensor) -> Sequence[Tensor | None]:
    """Return, for every token of `[B, H, T]` or `[B, H, T, K]`, what multiplies its state."""
    if decay is None:
        return [None] * k.shape[2]
    factors = decay.exp()[..., None]
    return (factors if decay.ndim == 4 else factors[..., None]).unbind(2)


class NoDecay:
    """Keys K of a chunk, without a decay; the base of those with one.

    Attributes:
        since: What token i finds of the state before the chunk, to be multiplied into its key.
        left: What of the write under k_j is in the state after the chunk, likewise.
        whole: What of the state before the chunk is in the state after it, `[G, 1 or K, 1]`.
    """

    def __init__(self, K: Tensor) -> None:
        self.K = K
        self.since: Tensor | None = None
        self.left: Tensor | None = None
        self.whole: Tensor | None = None

    def products(self, R: Tensor) -> Tensor:
        """Return M `[G, n, C, C]` for n kinds of reads R `[G, n, C, K]`, zero for j > i."""
        return _products(R, self.K).tril_()

    def backward(self, dM: Tensor, M: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of R, K and g from that of M, which is zero for j > i."""
        dM = dM.flatten(1, 2)
        return (dM @ self.K).view_as(R), dM.mT @ R.flatten(1, 2), None

    def crossing(self, reads: Tensor, writes: Tensor, whole: Tensor) -> Tensor | None:
        """Return the gradient of g from all that has to do with a state.

        `reads` and `writes` are products of R and K, `[G, C, K]`, and `whole` of the state before
        the chunk, `[G, K, V]`, with their gradients.
        """


class ScalarDecay(NoDecay):
    """Keys under one decay a token."""

    def __init__(self, K: Tensor, g: Tensor) -> None:
        super().__init__(K)
        c = g.shape[1]
        self.pairs = g.expand(-1, c, c).tril(-1).cumsum(1).exp_().tril_()
        self.since = g.cumsum(1).exp_()
        self.left = self.pairs[:, -1, :, None]
        self.whole = self.since[:, -1:]

    def products(self, R: Tensor) -> Tensor:
        """See the base."""
        return _products(R, self.K).mul_(self.pairs[:, None])

    def backward(self, dM: Tensor, M: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See the base."""
        dR, dK, _ = super().backward(dM * self.pairs[:, None], M, R)
        crossing = _from(torch.sum(dM * M, 1)).tril_(-1)
        return dR, dK, crossing.sum(2, keepdim=True)

    def crossing(self, reads: Tensor, writes: Tensor, whole: Tensor) -> Tensor | None:
        """See the base."""
        return _crossing(
            reads.sum(2, keepdim=True),
            writes.sum(2, keepdim=True),
            whole.sum((1, 2))[:, None, None],
        )


class _Rows(NamedTuple):
    """The rows from `first` on of a block, in which decays stand pair by pair."""

    first: int
    last: int
    pairs: Tensor  # [G, c, c, K]
    kept: Tensor  # the same times the keys
    since: Tensor  # [G, c, K], from the start of the block
    left: Tensor  # [G, first, K], of earlier writes, at the start of the block


class ChannelDecay(NoDecay):
    """Keys under one decay a channel."""

    def __init__(self, K: Tensor, g: Tensor) -> None:
        super().__init__(K)
        self.g = g
        self.since = g.cumsum(1).exp_()
        self.left = _after(g).exp_()
        self.whole = self.since[:, -1, :, None]
        self.blocks = list(self._blocks())

    def _blocks(self) -> Iterator[_Rows]:
        for first in range(0, self.g.shape[1], BLOCK):
            g = self.g[:, first : first + BLOCK]
            c = g.shape[1]
            later = torch.ones(c, c, dtype=torch.bool, device=g.device).tril_()
            pairs = g[:, :, None].expand(-1, c, c, -1).masked_fill(later.T[..., None], 0)
            pairs = pairs.cumsum(1).exp_().masked_fill_(~later[..., None], 0)
            kept = pairs * self.K[:, None, first : first + c]
            left = _after(self.g[:, :first]).exp_()
            yield _Rows(first, first + c, pairs, kept, g.cumsum(1).exp_(), left)

    def products(self, R: Tensor) -> Tensor:
        """See the base."""
        M = R.new_zeros(*R.shape[:3], R.shape[2])
        for first, last, _, kept, since, left in self.blocks:
            r = R[:, :, first:last]
            M[:, :, first:last, first:last] = (r.transpose(1, 2) @ kept.mT).transpose(1, 2)
            if first:
                M[:, :, first:last, :first] = _products(
                    r * since[:, None], self.K[:, :first] * left
                )
        return M

    def backward(self, dM: Tensor, M: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See the base."""
        dR, dK, dg = torch.empty_like(R), torch.zeros_like(self.K), torch.zeros_like(self.K)
        for first, last, pairs, kept, since, left in self.blocks:
            r = R[:, :, first:last]
            d = dM[:, :, first:last, first:last].transpose(1, 2)
            dr = (d @ kept).transpose(1, 2)
            dkept = d.mT @ r.transpose(1, 2)
            dK[:, first:last] += (dkept * pairs).sum(1)
            dg[:, first:last] += _pairs_crossing(dkept * kept)
            if first:
                r, k = r * since[:, None], self.K[:, :first] * left
                d = dM[:, :, first:last, :first].flatten(1, 2)
                dr_since, dk = (d @ k).view_as(r), d.mT @ r.flatten(1, 2)
                dr = dr + dr_since * since[:, None]
                dK[:, :first] += dk * left
                dg[:, first:last] += _from((r * dr_since).sum(1))
                dg[:, :first] += _before(k * dk)
            dR[:, :, first:last] = dr
        return dR, dK, dg

    def crossing(self, reads: Tensor, writes: Tensor, whole: Tensor) -> Tensor | None:
        """See the base."""
        return _crossing(reads, writes, whole.sum(2)[:, None])


def decayed(K: Tensor, g: Tensor | None) -> NoDecay:
    """Return keys with their decay; g is `[G, C, 1]`, `[G, C, K]` or None."""
    if g is None:
        return NoDecay(K)
    return ScalarDecay(K, g) if g.shape[2] == 1 else ChannelDecay(K, g)


def _products(R: Tensor, K: Tensor) -> Tensor:
    return torch.bmm(R.flatten(1, 2), K.mT).view(*R.shape[:3], K.shape[1])


def _from(x: Tensor) -> Tensor:
    """Sum over tokens i >= t."""
    return x.flip(1).cumsum(1).flip(1)


def _after(x: Tensor) -> Tensor:
    """Sum over tokens i > t."""
    return _from(pad(x[:, 1:], (0, 0, 0, 1)))


def _before(x: Tensor) -> Tensor:
    """Sum over tokens j < t."""
    return pad(x[:, :-1], (0, 0, 1, 0)).cumsum(1)


def _crossing(reads: Tensor, writes: Tensor, whole: Tensor) -> Tensor:
    return _from(reads) + _before(writes) + whole


def _pairs_crossing(x: Tensor) -> Tensor:
    """Sum x `[G, i, j, K]` over j < t <= i."""
    t = torch.arange(x.shape[1], device=x.device)
    crossed = (t[None, :, None] >= t[:, None, None]) & (t[None, None] < t[:, None, None])
    return crossed.to(x.dtype).flatten(1) @ x.flatten(1, 2)
