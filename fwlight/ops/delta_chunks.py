"""The delta rule in chunks, in torch's operators.

Yang et al. 2024 (arXiv 2406.06484), section 3. Chunks are worked through one by one, so that what a
chunk computes stays in the processor's caches and memory does not grow with it.

Shapes are `[G, C, D]`: G = batch times heads, C tokens of a chunk. Within it, with
T = (I + b A)^-1, the values missing, those written, the reads and the next state are

    A = strict_tril(K K^T)      P = tril(Q K^T)
    X = V - K S      U = T b X      O = Q S + P U      S' = S + K^T U
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.linalg and Function.apply carry no types)

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from fwlight.autocast import without_autocast
from fwlight.ops.chunks import (
    CHUNK_SIZE,
    apply,
    chunk_length,
    load,
    refuse_second_derivative,
    store,
)
from fwlight.ops.gated_chunks import gated_chunks


def chunk_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor | None, Tensor]:
    """Run chunk by chunk, with gates by `gated_chunks`.

    What is kept for the backward pass are the arguments and the states at chunk starts; the rest
    is computed again.
    """
    if decay is not None or erase_key is not None:
        return gated_chunks(q, k, v, beta, S, decay, erase_key, "delta", chunk_size)
    return apply(_ChunkDeltaRule, q, k, v, beta, S, chunk_length(k.shape[2], chunk_size))


class _ChunkDeltaRule(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor, c: int
    ) -> tuple[Tensor | None, Tensor]:
        o, S = _forward(c, q, k, v, beta, S0)
        ctx.save_for_backward(q, k, v, beta, S)
        ctx.c = c
        # A clone, so that a carried state does not keep all others alive.
        return o, S[-1].clone().view_as(S0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, S = ctx.saved_tensors
        with without_autocast(k):
            return *_backward(ctx.c, q, k, v, beta, S, *grads), None


def _forward(
    c: int, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return o, and the states at chunk starts and at the end `[N + 1, G, K, V]`."""
    S = S0.new_empty((-(-k.shape[2] // c) + 1, *S0.flatten(0, 1).shape))
    S[0] = S0.flatten(0, 1)
    o = None if q is None else torch.empty_like(v)
    for n in range(len(S) - 1):
        K, b = load(k, c, n), load(beta[..., None], c, n)
        X = torch.baddbmm(load(v, c, n), K, S[n], alpha=-1)
        U = _solve(b * _couplings(K), X.mul_(b), upper=False)
        if q is not None and o is not None:
            Q = load(q, c, n)
            store(torch.bmm(Q, S[n]).baddbmm_(torch.bmm(Q, K.mT).tril_(), U), o, c, n)
        torch.baddbmm(S[n], K.mT, U, out=S[n + 1])
    return o, S


def _backward(
    c: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    do: Tensor | None,
    dS_T: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, beta and S_0 from those of o and S_T.

    From the last chunk to the first,

        dU = P^T dO + K dS'      dR = T^T dU      dX = b dR
        dV = dX      db = rowsum(dR (X - A U))
        F = tril(dO U^T)      H = strict_tril(dX U^T)
        dQ = dO S^T + F K      dK = U dS'^T - dX S^T - (H + H^T) K + F^T Q
        dS = dS' + Q^T dO - K^T dX
    """
    if q is None or do is None:
        q = do = None
    dq = None if q is None else torch.empty_like(q)
    dk, dv, dbeta = torch.empty_like(k), torch.empty_like(v), torch.empty_like(beta)
    dS = dS_T.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    for n in reversed(range(len(S) - 1)):
        K, b = load(k, c, n), load(beta[..., None], c, n)
        A = _couplings(K)
        bA = b * A
        X = torch.baddbmm(load(v, c, n), K, S[n], alpha=-1)
        U = _solve(bA, b * X, upper=False)
        dU, dK = torch.bmm(K, dS), torch.bmm(U, dS.mT)
        if q is not None and do is not None and dq is not None:
            Q, dO = load(q, c, n), load(do, c, n)
            dU.baddbmm_(torch.bmm(Q, K.mT).tril_().mT, dO)
            F = torch.bmm(dO, U.mT).tril_()
            store(torch.bmm(dO, S[n].mT).baddbmm_(F, K), dq, c, n)
            dK.baddbmm_(F.mT, Q)
            dS.baddbmm_(Q.mT, dO)
        dR = _solve(bA.mT, dU, upper=True)
        dX = b * dR
        store(dX, dv, c, n)
        X.baddbmm_(A.to(X.dtype), U, alpha=-1)
        store((X * dR).sum(-1, keepdim=True), dbeta[..., None], c, n)
        H = torch.bmm(dX, U.mT).tril_(-1)
        dK.baddbmm_(H + H.mT, K, alpha=-1).baddbmm_(dX, S[n].mT, alpha=-1)
        store(dK, dk, c, n)
        dS.baddbmm_(K.mT, dX, alpha=-1)
    return dq, dk, dv, dbeta, dS.view_as(dS_T)


def _couplings(K: Tensor) -> Tensor:
    """Return A in float64.

    Where one key comes again and again with b = 2, every write turns the sign of what is stored and
    no error decays: in float32 that of A, the same in every chunk, would add up over a sequence.
    """
    keys = K.double()
    return torch.bmm(keys, keys.mT).tril_(-1)


def _solve(A: Tensor, X: Tensor, *, upper: bool) -> Tensor:
    """Return (I + A)^-1 X.

    By substitution. A product of powers would need none, but its terms grow like binomial
    coefficients where keys repeat: no digit of the result is right with 64 equal keys.
    """
    found = torch.linalg.solve_triangular(A, X.double(), upper=upper, unitriangular=True)
    return found.to(X.dtype)
