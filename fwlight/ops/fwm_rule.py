"""The rule of the fast weight memory: a delta write, then a projection onto the unit ball."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.ops import native
from fwlight.ops.backends import Backend, no_obstacle, run_rule
from fwlight.ops.decays import remaining
from fwlight.ops.native import native_fwm_rule
from fwlight.packing import Pieces


def fwm_rule(
    q: Float[Tensor, "b h r k"] | None,
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"],
    *,
    empties: Bool[Tensor, "b h t"] | None = None,
    project_first: bool = False,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h r v"] | None, Float[Tensor, "b h k v"]]:
    """Write as the delta rule does, scale the fast weights back into the unit ball, then read.

        S'_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t)
        S_t = S'_t / max(1, |S'_t|_F)      o_t = S_t^T q_t

    Schlag et al. 2021a (arXiv 2011.07831), the baseline of Schlag et al. 2021b (arXiv 2102.11174).
    As in the reference code of the latter the first write, into a memory that is exactly zero, is
    not projected; in that of the former, whose cell `fwlight.mixers.fwm_lstm` is, it is.
    (The native back end takes what has no square in the number format, below 1e-23 in float32, for
    zero, and smaller numbers than the format's exponent allows, below 1e-38, everywhere.)
    Neither is a write of nothing (beta_t = 0 or k_t = 0), which leaves the state untouched.

    The others may have n times as many rows as q, n writes a token of which the last is read.

    A number that is not finite spoils reads of its own head and sequence alone: with "recurrent"
    from its token on, with "native", which multiplies it by the zeros of a mask, up to 15 tokens of
    its chunk before it too.

    Args:
        q: Queries, features already, one a token; None writes only.
        k: Keys, features already.
        v: Values.
        beta: Write strengths.
        empties: True where the memory is emptied before the write; None is nowhere. (A decay that
            leaves something would change what a format's smallest number is, and with it which
            write is the first.)
        project_first: Whether the write into an empty memory is projected too.
        initial_state: Fast weights S_0 to continue from; None is zero.
        backend: "recurrent" (token by token), "native" (chunkwise in C++ on a CPU, compiled at
            first use, differentiable once) or "auto", which is "native" on a CPU. Where "native"
            cannot run, "recurrent" does, with one warning.

    Returns:
        o in the dtype of v (None without q), and S_T in float32, or in float64 for float64 inputs.

    Raises:
        ValueError: If shapes disagree, numbers are integers or the back end is unknown.
    """
    decay = None
    if empties is not None:
        decay = k.new_zeros(k.shape[:3]).masked_fill(empties, -torch.inf)
    backends = PROJECTING if project_first else BACKENDS
    return run_rule(backends, backend, q, k, v, beta, initial_state, decay)


def recurrent_fwm_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor,
    *,
    decay: Tensor | None = None,
    project_first: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Run token by token; this is the specification."""
    null = (beta == 0) | (k == 0).all(-1)
    queries = [None] * k.shape[2] if q is None else q.unbind(2)
    tokens = zip(
        queries,
        k.unbind(2),
        v.unbind(2),
        beta[..., None].unbind(2),
        null.unbind(2),
        remaining(decay, k),
        strict=True,
    )
    outputs: list[Tensor] = []
    S_t = S
    for q_t, k_t, v_t, b_t, null_t, left in tokens:
        if left is not None:
            S_t = left * S_t
        unprojected = null_t if project_first else null_t | ~S_t.flatten(-2).any(-1)
        u_t = b_t * (v_t - (k_t[..., None, :] @ S_t).squeeze(-2))
        S_t = S_t + k_t[..., :, None] * u_t[..., None, :]
        size = _frobenius_norm(S_t).clamp(min=1.0).masked_fill(unprojected, 1.0)
        S_t = S_t / size[..., None, None]
        if q_t is not None:
            outputs.append((q_t[..., None, :] @ S_t).squeeze(-2))
    return None if q is None else torch.stack(outputs, dim=2), S_t


def _frobenius_norm(S: Tensor) -> Tensor:
    # torch.linalg has no types. Unlike a root of a sum of squares, its gradient at zero is zero.
    return torch.linalg.vector_norm(S, dim=(-2, -1))  # pyright: ignore


def _native_between_resets(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    S: Tensor | None,
    *,
    decay: Tensor | None = None,
    project_first: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Run the kernel on what stands between tokens that empty the memory, side by side."""
    if decay is None or 0 in k.shape:
        return native_fwm_rule(q, k, v, beta, S, project_first=project_first)
    (b, h), rows = k.shape[:2], k.shape[0] * k.shape[1]
    starts = decay.flatten(0, 1) == -torch.inf  # every head is a row of its own
    pieces = Pieces(starts)

    def cut(x: Tensor) -> Tensor:
        # Nothing is written, and so nothing changed, where a piece is over.
        return pieces.lay_out(x.flatten(0, 1)[:, None])

    piece, state = pieces.place[0], None
    if S is not None:
        goes_on = torch.zeros(len(pieces.padding_mask), dtype=torch.bool)
        goes_on[piece[:, 0]] = ~starts[:, 0]
        row = torch.empty_like(goes_on, dtype=torch.int64)
        row[piece] = torch.arange(rows)[:, None].expand_as(piece)
        state = S.flatten(0, 1)[row, None].masked_fill(~goes_on[:, None, None, None], 0.0)
    parts = (None if q is None else cut(q), cut(k), cut(v), cut(beta))
    o, last = native_fwm_rule(*parts, state, project_first=project_first)
    last = last[piece[:, -1]].view(b, h, *last.shape[2:])
    return o if o is None else pieces.back(o).view(v.shape), last


def _obstacle(
    k: Tensor, v: Tensor, dtype: torch.dtype, *, decay: Tensor | None = None
) -> str | None:
    del decay  # which empties the memory or leaves it
    return native.obstacle(k, v, dtype)


BACKENDS = (
    Backend("native", _native_between_resets, _obstacle),
    Backend("recurrent", recurrent_fwm_rule, no_obstacle),
)
PROJECTING = tuple(x._replace(run=partial(x.run, project_first=True)) for x in BACKENDS)
