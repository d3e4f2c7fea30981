"""The sum and delta rules under gates, in chunks, in torch's operators.

Chunks are worked through one by one, as in `delta_chunks`, which is the delta rule without gates.
Shapes are `[G, C, D]`: G = batch times heads, C tokens of a chunk. With the erase keys E, factors
a, l, c of a decay within the chunk (`decays`: a times what is read of the state before it, l times
what is written into the state after it, c times that state) and products that hold them too,

    A = strict_tril(E K^T)      T = (I + b A)^-1      P = tril(Q K^T)
    U = T b (V - a E S)      O = a Q S + P U      S' = c S + (l K)^T U

where E is K without an erase key, and the sum rule has U = b V.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.linalg and Function.apply carry no types)

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from fwlight.autocast import without_autocast
from fwlight.ops.chunks import apply, chunk_length, load, refuse_second_derivative, store
from fwlight.ops.decays import NoDecay, decayed


def gated_chunks(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor,
    decay: Tensor | None,
    erase_key: Tensor | None,
    rule: str,
    chunk_size: int,
) -> tuple[Tensor | None, Tensor]:
    """Run the "sum" or "delta" rule chunk by chunk.

    What is kept for the backward pass are the arguments and the states at chunk starts; the rest
    is computed again.
    """
    if decay is not None and decay.ndim == 3:
        decay = decay[..., None]
    c = chunk_length(k.shape[2], chunk_size)
    return apply(_GatedChunks, q, k, v, beta, decay, erase_key, S, rule, c)


class _GatedChunks(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        beta: Tensor | None,
        decay: Tensor | None,
        erase_key: Tensor | None,
        S0: Tensor,
        rule: str,
        c: int,
    ) -> tuple[Tensor | None, Tensor]:
        S = S0.new_empty((-(-k.shape[2] // c) + 1, *S0.flatten(0, 1).shape))
        S[0] = S0.flatten(0, 1)
        o = None if q is None else torch.empty_like(v)
        for n in range(len(S) - 1):
            x = _Chunk.load(rule, n, c, q, k, v, beta, decay, erase_key, S[n])
            if o is not None:
                store(x.read[:, -1].baddbmm(x.M[:, -1], x.U), o, c, n)
            torch.baddbmm(_times(S[n], x.keys.whole), x.written.mT, x.U, out=S[n + 1])
        ctx.save_for_backward(q, k, v, beta, decay, erase_key, S)
        ctx.rule, ctx.c = rule, c
        # A clone, so that a carried state does not keep all others alive.
        return o, S[-1].clone().view_as(S0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, decay, erase_key, S = ctx.saved_tensors
        with without_autocast(k):
            gradients = _backward(ctx.rule, ctx.c, q, k, v, beta, decay, erase_key, S, *grads)
        return *gradients, None, None


class _Chunk(NamedTuple):
    """What both passes need of a chunk; `reads` are E and Q, as far as there are any."""

    keys: NoDecay
    b: Tensor | None
    reads: Tensor  # [G, n, C, K]
    M: Tensor  # [G, n, C, C]: A and P
    reading: Tensor  # [G, n, C, K]: a E and a Q
    read: Tensor  # [G, n, C, V]: a E S and a Q S
    written: Tensor  # l K
    missing: Tensor  # V - a E S, or V under the sum rule
    T: Tensor | None
    U: Tensor

    @classmethod
    def load(
        cls,
        rule: str,
        n: int,
        c: int,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        beta: Tensor | None,
        decay: Tensor | None,
        erase_key: Tensor | None,
        S: Tensor,
    ) -> "_Chunk":
        K, V = load(k, c, n), load(v, c, n)
        b = None if beta is None else load(beta[..., None], c, n)
        keys = decayed(K, None if decay is None else load(decay, c, n))
        erased = k if erase_key is None and rule == "delta" else erase_key
        both = [load(x, c, n) for x in (erased, q) if x is not None]
        reads = torch.stack(both, 1) if both else K[:, None][:, :0]
        M = keys.products(reads)
        reading = _decayed(reads, keys)
        read = torch.bmm(reading.flatten(1, 2), S).view(*reads.shape[:3], S.shape[2])
        written = _times(K, keys.left)
        if erased is None:
            return cls(keys, b, reads, M, reading, read, written, V, None, _times(V, b))
        assert b is not None
        A, X = M[:, 0].tril_(-1), V - read[:, 0]
        T = _inverse(b * A)
        return cls(keys, b, reads, M, reading, read, written, X, T, torch.bmm(T, b * X))


def _backward(
    rule: str,
    c: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    erase_key: Tensor | None,
    S: Tensor,
    do: Tensor | None,
    dS_T: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments from those of o and S_T.

    From the last chunk to the first,

        dU = P^T dO + l K dS'      dR = T^T dU      dV = b dR
        db = rowsum(dR (V - a E S - A U))      Y = [-dV; dO]      d[A; P] = tril(Y U^T)
        d[E; Q] = a Y S^T + d[A; P] K      dK = l U dS'^T + d[A; P]^T [E; Q]
        dS = c dS' + (a [E; Q])^T Y

    with the decay in products of d[A; P] as in those of K. The sum rule has dR = dU.
    """
    if q is None or do is None:
        q = do = None
    arguments = q, k, v, beta, decay, erase_key
    found = [None if x is None else torch.empty_like(x) for x in arguments]
    dS = dS_T.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    for n in reversed(range(len(S) - 1)):
        x = _Chunk.load(rule, n, c, *arguments, S[n])
        keys = x.keys
        dU = torch.bmm(x.written, dS)
        if do is not None:
            dU.baddbmm_(x.M[:, -1].mT, load(do, c, n))
        missing = x.missing
        if x.T is not None:
            dU = torch.bmm(x.T.mT, dU)
            missing = torch.baddbmm(missing, x.M[:, 0], x.U, alpha=-1)
        dV = _times(dU, x.b)
        both = [] if x.T is None else [-dV]
        both += [] if do is None else [load(do, c, n)]
        Y = torch.stack(both, 1) if both else dV[:, None][:, :0]
        rows = Y.flatten(1, 2)
        dM = torch.bmm(rows, x.U.mT).view_as(x.M).tril_()
        if x.T is not None:
            dM[:, 0].tril_(-1)
        dR = _decayed(torch.bmm(rows, S[n].mT).view_as(x.reads), keys)
        dK = _times(torch.bmm(x.U, dS.mT), keys.left)
        whole = _times(dS, keys.whole)
        dg = keys.crossing((x.reads * dR).sum(1), keys.K * dK, S[n] * whole)
        dR_pairs, dK_pairs, dg_pairs = keys.backward(dM, x.M, x.reads)
        dR += dR_pairs
        dK = dK + dK_pairs
        if rule == "delta" and erase_key is None:
            dK += dR[:, 0]
        results = [
            None if q is None else dR[:, -1],
            dK,
            dV,
            None if beta is None else (missing * dU).sum(-1, keepdim=True),
            None if dg is None or dg_pairs is None else dg + dg_pairs,
            None if erase_key is None else dR[:, 0],
        ]
        for to, result in zip(found, results, strict=True):
            if to is not None and result is not None:
                store(result, to[..., None] if to.ndim == 3 else to, c, n)
        dS = torch.baddbmm(whole, x.reading.flatten(1, 2).mT, rows)
    return *found, dS.view_as(dS_T)


def _inverse(A: Tensor) -> Tensor:
    """Return (I + A)^-1 by substitution, for the reason that `delta_chunks._solve` gives."""
    eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device).expand_as(A)
    return torch.linalg.solve_triangular(A, eye, upper=False, unitriangular=True)


def _decayed(reads: Tensor, keys: NoDecay) -> Tensor:
    return _times(reads, None if keys.since is None else keys.since[:, None])


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
