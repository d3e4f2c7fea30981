"""The sum rule: every association is added to the fast weights."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function

from fwlight.autocast import without_autocast
from fwlight.ops import fla, native
from fwlight.ops.backends import Backend, no_obstacle, run_rule
from fwlight.ops.chunks import (
    CHUNK_SIZE,
    apply,
    chunk_length,
    join,
    refuse_second_derivative,
    split,
)
from fwlight.ops.decays import remaining
from fwlight.ops.fla import fla_sum_rule
from fwlight.ops.gated_chunks import gated_chunks
from fwlight.ops.native import native_sum_rule


def sum_rule(
    q: Float[Tensor, "b h r k"] | None,
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"] | None = None,
    *,
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"] | None = None,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h r v"] | None, Float[Tensor, "b h k v"]]:
    """Add every association to the fast weights, reading each token after its own write.

        S_t = S_{t-1} + k_t (x) beta_t v_t      o_t = S_t^T q_t

    Schlag et al. 2021b (arXiv 2102.11174), equations 17 and 19 without a normalisation, S being
    the transpose of their W. The paper has no beta.

    With a decay g_t the memory decays before the write, S_t = Diag(exp(g_t)) S_{t-1} + ..., as in
    RetNet (Sun et al. 2023, arXiv 2307.08621) and, with one a key channel, gated linear attention
    (Yang et al. 2024, arXiv 2312.06635). -inf empties the memory before its token.

    The others may have n times as many rows as q, n writes a token of which the last is read.

    A number that is not finite spoils reads of its own head and sequence alone: with "recurrent"
    from its token on, with the others, which multiply it by the zeros of a mask, up to 63 tokens of
    its chunk before it too. "native" takes numbers too small for the format's exponent (below 1e-38
    in float32) for 0.

    Args:
        q: Queries, features already, one a token; None writes only.
        k: Keys, features already.
        v: Values.
        beta: Write strengths; None is 1 everywhere.
        decay: Logs g_t, at most 0, which is not checked; None is 0.
        initial_state: Fast weights S_0 to continue from; None is zero.
        backend: "recurrent" (token by token), "chunk" (chunkwise parallel, differentiable once),
            "native" (the same in C++ on a CPU, compiled at first use), "fla" (fla-core on CUDA in
            half precision) or "auto", which chooses by length, device and decay. Where "native" or
            "fla" cannot run, "chunk" does, with one warning.

    Returns:
        o in the dtype of v (None without q), and S_T in float32, or in float64 for float64 inputs.

    Raises:
        ValueError: If shapes disagree, numbers are integers or the back end is unknown.
    """
    return run_rule(BACKENDS, backend, q, k, v, beta, initial_state, decay)


def recurrent_sum_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor,
    *,
    decay: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run token by token; this is the specification."""
    u = v if beta is None else beta[..., None] * v
    queries = [None] * k.shape[2] if q is None else q.unbind(2)
    outputs: list[Tensor] = []
    S_t = S
    tokens = zip(queries, k.unbind(2), u.unbind(2), remaining(decay, k), strict=True)
    for q_t, k_t, u_t, left in tokens:
        if left is not None:
            S_t = left * S_t
        S_t = S_t + k_t[..., :, None] * u_t[..., None, :]
        if q_t is not None:
            outputs.append((q_t[..., None, :] @ S_t).squeeze(-2))
    return None if q is None else torch.stack(outputs, dim=2), S_t


def chunk_sum_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S: Tensor,
    *,
    decay: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor | None, Tensor]:
    """Run chunk by chunk: all chunks at once, only their states are summed in order.

    Nothing but the arguments is kept for the backward pass. Under a decay `gated_chunks` runs.
    """
    if decay is not None:
        return gated_chunks(q, k, v, beta, S, decay, None, "sum", chunk_size)
    return apply(_ChunkSumRule, q, k, v, beta, S, chunk_length(k.shape[2], chunk_size))


class _ChunkSumRule(Function):
    """The chunkwise form; see `_forward` and `_backward` for the algebra."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, S0: Tensor, c: int
    ) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(q, k, v, beta, S0)
        ctx.c = c
        return _forward(c, q, k, v, beta, S0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        q, k, v, beta, S0 = ctx.saved_tensors
        with without_autocast(k):
            return *_backward(ctx.c, q, k, v, beta, S0, *grads), None


def _forward(
    c: int, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor | None, S0: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return o and S_T.

    Within a chunk, with U = beta V,

        O = Q S + tril(Q K^T) U      S' = S + K^T U
    """
    K = split(k, c)
    U = split(v if beta is None else beta[..., None] * v, c)
    S = _states(K, U, S0)
    # A clone, so that a carried state does not keep the states of all chunks alive.
    S_T = S[:, -1].clone().view_as(S0)
    if q is None:
        return None, S_T
    Q = split(q, c)
    o = Q @ S[:, :-1]
    o += (Q @ K.mT).tril_() @ U
    return join(o, q), S_T


def _states(K: Tensor, U: Tensor, S0: Tensor) -> Tensor:
    """Return the states at the start of every chunk and at the end `[G, N + 1, K, V]`."""
    return torch.cat([S0.flatten(0, 1)[:, None], K.mT @ U], dim=1).cumsum(1)


def _backward(
    c: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    S0: Tensor,
    do: Tensor | None,
    dS_T: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of q, k, v, beta and S_0 from those of o and S_T."""
    K, V = split(k, c), split(v, c)
    b = None if beta is None else split(beta[..., None], c)
    U = V if b is None else b * V
    dS = dS_T.flatten(0, 1)[:, None]
    if q is None or do is None:
        dq, dS0 = None, dS_T
        dK, dU = U @ dS.mT, K @ dS
    else:
        Q, dO = split(q, c), split(do, c)
        # What reaches a state comes from all later reads and from the final state.
        dS = torch.cat([Q.mT @ dO, dS], dim=1).flip(1).cumsum(1).flip(1)
        dS0, dS_end = dS[:, 0].view_as(S0), dS[:, 1:]
        dP = (dO @ U.mT).tril_()
        dQ = dO @ _states(K, U, S0)[:, :-1].mT
        dQ += dP @ K
        dK = U @ dS_end.mT
        dK += dP.mT @ Q
        dU = K @ dS_end
        dU += (Q @ K.mT).tril_().mT @ dO
        dq = join(dQ, q)
    dV = dU if b is None else b * dU
    dbeta = None if beta is None else join((dU * V).sum(-1), beta)
    return dq, join(dK, k), join(dV, v), dbeta, dS0


BACKENDS = (
    Backend("native", native_sum_rule, native.obstacle, counts_writes=True),
    Backend("fla", fla_sum_rule, fla.obstacle),
    Backend("chunk", chunk_sum_rule, no_obstacle),
    Backend("recurrent", recurrent_sum_rule, no_obstacle),
)
