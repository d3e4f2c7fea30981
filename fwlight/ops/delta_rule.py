"""The delta rule: a write replaces what its key retrieves."""

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops import fla, native
from fwlight.ops.backends import Backend, no_obstacle, run_rule
from fwlight.ops.decays import remaining
from fwlight.ops.delta_chunks import chunk_delta_rule
from fwlight.ops.fla import fla_delta_rule
from fwlight.ops.native import native_delta_rule


def delta_rule(
    q: Float[Tensor, "b h r k"] | None,
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"],
    *,
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"] | None = None,
    erase_key: Float[Tensor, "b h t k"] | None = None,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h r v"] | None, Float[Tensor, "b h k v"]]:
    """Move the value stored under each key towards the new one, then read.

        S_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t)      o_t = S_t^T q_t

    Schlag et al. 2021b (arXiv 2102.11174), equations 24 and 25, S being the transpose of their W.
    Keys are used as they are: with |k_t| = 1 and beta_t = 1 a write replaces exactly.

    With a decay g_t and an erase key p_t the memory decays first, and what p_t retrieves goes:

        S'_t = Diag(exp(g_t)) S_{t-1}      S_t = S'_t + k_t (x) beta_t (v_t - S'_t^T p_t)

    One decay a token: Gated DeltaNet (Yang et al. 2025, arXiv 2412.06464); one a key channel: Kimi
    delta attention (arXiv 2510.26692). -inf empties the memory before its token.

    The others may have n times as many rows as q, n writes a token of which the last is read, as in
    DeltaProduct (Siems et al. 2025, arXiv 2502.10297); a decay belongs to the first of them, and is
    0 for the others.

    A number that is not finite spoils reads of its own head and sequence alone: with "recurrent"
    from its token on, with the others, which multiply it by the zeros of a mask, up to 63 tokens of
    its chunk before it too. "native" takes numbers too small for the format's exponent (below 1e-38
    in float32) for 0.

    Args:
        q: Queries, features already, one a token; None writes only.
        k: Keys, features already.
        v: Values.
        beta: Write strengths.
        decay: Logs g_t, at most 0, which is not checked; None is 0.
        erase_key: Keys p_t, features already; None is k.
        initial_state: Fast weights S_0 to continue from; None is zero.
        backend: "recurrent" (token by token), "chunk" (chunkwise parallel, differentiable once),
            "native" (the same in C++ on a CPU, compiled at first use), "fla" (fla-core on CUDA in
            half precision) or "auto", which chooses by length, device and gates. Where "native" or
            "fla" cannot run, "chunk" does, with one warning.

    Returns:
        o in the dtype of v (None without q), and S_T in float32, or in float64 for float64 inputs.

    Raises:
        ValueError: If shapes disagree, numbers are integers or the back end is unknown.
    """
    return run_rule(BACKENDS, backend, q, k, v, beta, initial_state, decay, erase_key)


def recurrent_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    decay: Tensor | None = None,
    erase_key: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Run token by token; this is the specification."""
    erased = k if erase_key is None else erase_key
    queries = [None] * k.shape[2] if q is None else q.unbind(2)
    tokens = zip(
        queries,
        k.unbind(2),
        v.unbind(2),
        beta[..., None].unbind(2),
        erased.unbind(2),
        remaining(decay, k),
        strict=True,
    )
    outputs: list[Tensor] = []
    S_t = S
    for q_t, k_t, v_t, b_t, p_t, left in tokens:
        if left is not None:
            S_t = left * S_t
        u_t = b_t * (v_t - (p_t[..., None, :] @ S_t).squeeze(-2))
        S_t = S_t + k_t[..., :, None] * u_t[..., None, :]
        if q_t is not None:
            outputs.append((q_t[..., None, :] @ S_t).squeeze(-2))
    return None if q is None else torch.stack(outputs, dim=2), S_t


BACKENDS = (
    Backend("native", native_delta_rule, native.obstacle, counts_writes=True),
    Backend("fla", fla_delta_rule, fla.obstacle),
    Backend("chunk", chunk_delta_rule, no_obstacle),
    Backend("recurrent", recurrent_delta_rule, no_obstacle),
)
