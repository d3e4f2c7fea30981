"""The delta rule: a write replaces what its key retrieves."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function

from fwlight.ops.backends import Backend, run_rule
from fwlight.ops.chunks import (
    CHUNK_SIZE,
    apply,
    chunk_length,
    join,
    refuse_second_derivative,
    solve_unit_lower,
    solve_unit_upper,
    split,
)
from fwlight.ops.fla import fla_delta_rule
from fwlight.ops.native import native_delta_rule


def delta_rule(
    q: Float[Tensor, "b h t k"] | None,
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"],
    *,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h t v"] | None, Float[Tensor, "b h k v"]]:
    """Move the value stored under each key towards the new one, then read.

        S_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t)      o_t = S_t^T q_t

    Schlag et al. 2021b (arXiv 2102.11174), equations 24 and 25, S being the transpose of their W.
    Keys are used as they are: with |k_t| = 1 and beta_t = 1 a write replaces exactly.

    Args:
        q: Queries, features already; None writes only.
        k: Keys, features already.
        v: Values.
        beta: Write strengths.
        initial_state: Fast weights S_0 to continue from; None is zero.
        backend: "recurrent" (token by token), "chunk" (chunkwise parallel, differentiable once),
            "native" (the same in C++ on a CPU, compiled at first use), "fla" (fla-core on CUDA in
            half precision) or "auto", which chooses by length and device. Where "native" or "fla"
            cannot run, "chunk" does, with one warning.

    Returns:
        o in the dtype of v (None without q), and S_T in float32, or in float64 for float64 inputs.

    Raises:
        ValueError: If shapes disagree or the back end is unknown.
    """
    return run_rule(BACKENDS, backend, q, k, v, beta, initial_state)


def recurrent_delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Run token by token; this is the specification."""
    queries = [None] * k.shape[2] if q is None else q.unbind(2)
    tokens = zip(queries, k.unbind(2), v.unbind(2), beta[..., None].unbind(2), strict=True)
    outputs: list[Tensor] = []
    S_t = S
    for q_t, k_t, v_t, b_t in tokens:
        u_t = b_t * (v_t - (k_t[..., None, :] @ S_t).squeeze(-2))
        S_t = S_t + k_t[..., :, None] * u_t[..., None, :]
        if q_t is not None:
            outputs.append((q_t[..., None, :] @ S_t).squeeze(-2))
    return None if q is None else torch.stack(outputs, dim=2), S_t


def chunk_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor | None, Tensor]:
    """Run chunk by chunk: one triangular solve for all chunks, only their states in order.

    Yang et al. 2024 (arXiv 2406.06484), section 3. What is kept for the backward pass are the
    arguments and the states at chunk starts; the rest is computed again.
    """
    return apply(_ChunkDeltaRule, q, k, v, beta, S, chunk_length(k.shape[2], chunk_size))


class _ChunkDeltaRule(Function):
    """The chunkwise form; see `_forward` and `_backward` for the algebra."""

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


def _forward(
    c: int, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return o, the states at chunk starts `[G, N, K, V]` and S_T.

    Within a chunk, with A = strict_tril(b K K^T) and U the values really written,

        (I + A) U = b (V - K S)      O = Q S + tril(Q K^T) U      S' = S + K^T U

    and with (I + A) W = b K and (I + A) U_0 = b V, known before any state, U = U_0 - W S.
    """
    K, V, b = split(k, c), split(v, c), split(beta[..., None], c)
    W, U = solve_unit_lower(b * (K @ K.mT), b * K, b * V)
    S = K.new_empty((*K.shape[:2], *S0.shape[2:]))
    S_n = S0.flatten(0, 1)
    for n in range(K.shape[1]):
        S[:, n] = S_n
        U[:, n] -= W[:, n] @ S_n
        S_n = torch.baddbmm(S_n, K[:, n].mT, U[:, n])
    if q is None:
        return None, S, S_n.view_as(S0)
    Q = split(q, c)
    o = Q @ S
    o += (Q @ K.mT).tril_() @ U
    return join(o, q), S, S_n.view_as(S0)


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
    """Return the gradients of q, k, v, beta and S_0 from those of o and S_T."""
    K, V, b = split(k, c), split(v, c), split(beta[..., None], c)
    G = K @ K.mT
    W, U = solve_unit_lower(b * G, b * K, b * V)
    U.sub_(W @ S)
    Q = None if q is None else split(q, c)
    dO = None if do is None else split(do, c)
    dU, dS_reads = torch.zeros_like(U), torch.zeros_like(S)
    if Q is not None and dO is not None:
        dU = (Q @ K.mT).tril_().mT @ dO
        dS_reads = Q.mT @ dO
        dS_reads -= W.mT @ dU
    dS_end, dS0 = _state_gradients(K, W, dS_reads, dS_T.flatten(0, 1))
    dU += K @ dS_end
    dR = solve_unit_upper((b * G).mT, dU)
    dA = (dR @ U.mT).tril_(-1).neg_()
    db = (dR * (V - K @ S)).sum(-1) + (dA * G).sum(-1)
    dE, dG = b * dR, b * dA
    dK = (dG + dG.mT) @ K
    dK += U @ dS_end.mT
    dK -= dE @ S.mT
    dQ = None
    if Q is not None and dO is not None:
        dP = (dO @ U.mT).tril_()
        dQ = dO @ S.mT
        dQ += dP @ K
        dK += dP.mT @ Q
    dq = None if dQ is None else join(dQ, k)
    return dq, join(dK, k), join(dE, v), join(db, beta), dS0.view_as(dS_T)


def _state_gradients(K: Tensor, W: Tensor, dS_reads: Tensor, dS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the states at the end of every chunk, and of the first state.

    dS = dS' + Q^T dO - K^T dE, where K^T dE = W^T dU. What reaches a chunk's state from its own
    reads is in `dS_reads`.
    """
    dS_end = torch.empty_like(dS_reads)
    for n in reversed(range(K.shape[1])):
        dS_end[:, n] = dS
        dS = torch.baddbmm(dS + dS_reads[:, n], W[:, n].mT, K[:, n] @ dS, alpha=-1)
    return dS_end, dS


BACKENDS: dict[str, Backend] = {
    "recurrent": recurrent_delta_rule,
    "chunk": chunk_delta_rule,
    "native": native_delta_rule,
    "fla": fla_delta_rule,
}
