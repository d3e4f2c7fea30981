"""The delta rule in chunks, in torch's operators.

Yang et al. 2024 (arXiv 2406.06484), section 3. Spans of some chunks are worked through in order,
so that what a span computes stays in the processor's caches and memory does not grow with it.

Shapes are `[n G, C, D]`: n chunks of a span, one after the other, of G = batch times heads
sequences, C tokens each. Within a chunk, with J = -K and the matrix M, known before any state,

    M = (I + strict_tril(b K K^T))^-1 diag(b)

the values missing and those written, the reads and the next state are

    X = V + J S      U = M X      O = Q S - tril(Q J^T) U      S' = S - J^T U

Q stands above J and O above X, for one product to make both.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.linalg and Function.apply carry no types)

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.functional import pad

from fwlight.ops.chunks import CHUNK_SIZE, apply, chunk_length, refuse_second_derivative

SPAN = 4
"""Chunks of a span. On a CPU 2 and 4 are equally fast; at T = 4,096 16 take a quarter longer and
all 64 chunks at once nearly half as long again."""


def chunk_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor | None, Tensor]:
    """Run chunk by chunk: what needs no state for many at once, their states in order.

    What is kept for the backward pass are the arguments and the states at chunk starts; the rest
    is computed again.
    """
    return apply(_ChunkDeltaRule, q, k, v, beta, S, chunk_length(k.shape[2], chunk_size))


class _ChunkDeltaRule(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor, c: int
    ) -> tuple[Tensor | None, Tensor]:
        o, S, S_T = _forward(c, q, k, v, beta, S0)
        ctx.save_for_backward(q, k, v, beta, S)
        ctx.c = c
        return o, S_T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, S = ctx.saved_tensors
        with torch.autocast(k.device.type, enabled=False):
            return *_backward(ctx.c, q, k, v, beta, S, *grads), None


class _Span(NamedTuple):
    """What no state is needed for."""

    QJ: Tensor
    """Q above J; J alone where nothing is read."""
    J: Tensor
    b: Tensor
    """Of shape `[n G, C, 1]`."""
    P: Tensor
    """tril(Q J^T), or nothing."""
    G: Tensor
    """strict_tril(K K^T)."""
    T: Tensor
    """(I + b G)^-1"""


def _span(c: int, part: slice, q: Tensor | None, k: Tensor, beta: Tensor) -> _Span:
    keys, b = _cut(k, c, part), _load(beta[..., None], c, part)
    rows = k.new_empty((*keys.shape[:3], c if q is None else 2 * c, keys.shape[4]))
    rows[..., -c:, :].copy_(keys).neg_()
    if q is not None:
        rows[..., :c, :] = _cut(q, c, part)
    QJ = rows.flatten(0, 2)
    J = QJ[:, -c:]
    products = QJ @ J.mT
    G = products[:, -c:].tril(-1)
    # By substitution. A product of powers would need none, but its terms grow like binomial
    # coefficients where keys repeat: no digit of the result is right with 64 equal keys.
    eye = torch.eye(c, dtype=G.dtype, device=G.device).expand_as(G)
    T = torch.linalg.solve_triangular(b * G, eye, upper=False, unitriangular=True)
    return _Span(QJ, J, b, products[:, :-c].tril(), G, T)


def _forward(
    c: int, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return o, the states at chunk starts and at the end `[N + 1, G, K, V]`, and S_T."""
    S = S0.new_empty((-(-k.shape[2] // c) + 1, *S0.flatten(0, 1).shape))
    S[0] = S0.flatten(0, 1)
    g = S.shape[1]
    o = None if q is None else torch.empty_like(v)
    for part in _parts(len(S) - 1):
        QJ, J, b, P, _, T = _span(c, part, q, k, beta)
        X, M = _load(v, c, part), b.mT * T
        U = torch.empty_like(X)
        for n in range(part.start, part.stop):
            i = slice((n - part.start) * g, (n - part.start + 1) * g)
            X[i].baddbmm_(J[i], S[n])
            torch.bmm(M[i], X[i], out=U[i])
            torch.baddbmm(S[n], J[i].mT, U[i], alpha=-1, out=S[n + 1])
        if o is not None:
            reads = QJ[:, :c] @ S[part].flatten(0, 1)
            _store(reads.baddbmm_(P, U, alpha=-1), o, c, part)
    # A clone, so that a carried state does not keep all others alive.
    return o, S, S[-1].clone().view_as(S0)


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

        dU = -tril(Q J^T)^T dO - J dS'      dR = T^T dU      dX = b dR
        dS = dS' + Q^T dO + J^T dX          dV = dX
        E = X - G U                         db = rowsum(dR E)
        F = tril(dO U^T)                    H = strict_tril(dX U^T)
        dQ = dO S^T - F J                   dJ = dX S^T - H J - F^T Q - H^T J - U dS'^T
    """
    if q is None or do is None:
        q = do = None
    dq = None if q is None else torch.empty_like(q)
    dk, dv, dbeta = torch.empty_like(k), torch.empty_like(v), torch.empty_like(beta)
    dS = dS_T.flatten(0, 1)
    g = len(dS)
    for part in reversed(_parts(len(S) - 1)):
        QJ, J, b, P, G, T = _span(c, part, q, k, beta)
        S_part = S[part].flatten(0, 1)
        X = _load(v, c, part).baddbmm_(J, S_part)
        U = T @ (b * X)
        dOX = v.new_empty((*QJ.shape[:2], v.shape[3]))
        dX = dOX[:, -c:]
        if do is None:
            dU = torch.zeros_like(U)
        else:
            dOX[:, :c] = _cut(do, c, part).flatten(0, 2)
            dU = P.mT @ dOX[:, :c]
        dR = torch.empty_like(dU)
        # After its chunks, and before the first of them.
        ends = dS.new_empty((part.stop - part.start + 1, *dS.shape))
        ends[-1] = dS
        for n in reversed(range(part.stop - part.start)):
            i = slice(n * g, (n + 1) * g)
            dU[i].baddbmm_(J[i], ends[n + 1], beta=-1, alpha=-1)
            torch.bmm(T[i].mT, dU[i], out=dR[i])
            dX[i] = b[i] * dR[i]
            torch.baddbmm(ends[n + 1], QJ[i].mT, dOX[i], out=ends[n])
        dS = ends[0]
        _store(dX, dv, c, part)
        FH = dOX @ U.mT
        FH[:, -c:].tril_(-1)
        FH[:, :-c].tril_()
        dQJ = (dOX @ S_part.mT).baddbmm_(FH, J, alpha=-1)
        if dq is not None:
            _store(dQJ[:, :c], dq, c, part)
        dJ = torch.baddbmm(dQJ[:, -c:], FH.mT, QJ, alpha=-1)
        dJ.baddbmm_(U, ends[1:].flatten(0, 1).mT, alpha=-1)
        _store(dJ.neg_(), dk, c, part)
        E = X.baddbmm_(G, U, alpha=-1)
        _store(E.mul_(dR).sum(-1, keepdim=True), dbeta[..., None], c, part)
    return dq, dk, dv, dbeta, dS.view_as(dS_T)


def _parts(chunks: int) -> list[slice]:
    """Return the chunks of every span."""
    return [slice(n, min(n + SPAN, chunks)) for n in range(0, chunks, SPAN)]


def _cut(x: Tensor, c: int, part: slice) -> Tensor:
    """Return a view of chunks of `[B, H, T, D]` as `[n, B, H, C, D]`.

    It is new memory where zeros, which write nothing, must fill the last chunk.
    """
    n = part.stop - part.start
    x = x[:, :, part.start * c : part.stop * c]
    missing = n * c - x.shape[2]
    return (pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (n, c)).movedim(2, 0)


def _load(x: Tensor, c: int, part: slice) -> Tensor:
    """Return new memory with chunks of `[B, H, T, D]`."""
    return _cut(x, c, part).clone(memory_format=torch.contiguous_format).flatten(0, 2)


def _store(chunks: Tensor, x: Tensor, c: int, part: slice) -> None:
    """Undo `_load` into a part of x."""
    x = x[:, :, part.start * c : part.stop * c]
    n, (b, h, t, d) = part.stop - part.start, x.shape
    whole = chunks.view(n, b, h, c, d).movedim(0, 2)
    if t == n * c:
        x.unflatten(2, (n, c)).copy_(whole)
    else:
        x.copy_(whole.flatten(2, 3)[:, :, :t])
