"""Norms of the fast weights, of what every write puts in and takes out, and their growth."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.lpq import check_exponents, lpq_norm
from fwlight.diagnostics.statistics import LOG_EDGES, Statistics, describe, merge
from fwlight.diagnostics.written import Written


class StateNorms(NamedTuple):
    """Norms of a matrix S [K, V] with singular values sigma_i; NaN if S is not finite."""

    frobenius: Float[Tensor, "*n"]
    """|S|_F, the root of the sum of sigma_i^2."""
    spectral: Float[Tensor, "*n"]
    """|S|_2, the largest sigma_i: the most that reading with a unit query can return."""
    stable_rank: Float[Tensor, "*n"]
    """|S|_F^2 / |S|_2^2, between 1 and the rank; 0 for a zero matrix."""
    effective_rank: Float[Tensor, "*n"]
    """exp(entropy of sigma_i^2 / sum sigma^2), the same; see `effective_rank`."""
    mixed: Float[Tensor, "*n"]
    """(sum_v (sum_k |S_kv|^p)^(q/p))^(1/q)."""


class WriteNorms(NamedTuple):
    """Frobenius norms of the parts of each write, S_t - S_{t-1} = insert - remove."""

    insert: Float[Tensor, "b h t"]
    """|beta_t k_t v_t^T|."""
    remove: Float[Tensor, "b h t"]
    """|beta_t k_t (S_{t-1}^T k_t)^T| of a delta write; zero for rules that only add."""
    change: Float[Tensor, "b h t"]
    """|beta_t k_t (v_t - S_{t-1}^T k_t)^T|: what the two leave of each other."""


def state_norms(S: Float[Tensor, "*n k v"], *, p: float = 2.0, q: float = 1.0) -> StateNorms:
    """Return the norms of every state.

    The mixed norm is the L_{p,q} norm of `fwlight.diagnostics.lpq`, whose columns are those of the
    value dimensions. p = q = 2 is the Frobenius norm.

    Args:
        S: States, K by V.
        p: Exponent over the features, at least 1; may be infinite.
        q: Exponent over the values, likewise.

    Raises:
        ValueError: If an exponent is below 1.
    """
    check_exponents(p=p, q=q)
    S = S.double()
    finite = S.isfinite().all(-1).all(-1)
    S = torch.where(finite[..., None, None], S, 0.0)
    squares = _squared_singular_values(S)
    total, largest = squares.sum(-1), squares.amax(-1)
    norms = StateNorms(
        total.sqrt(),
        largest.sqrt(),
        torch.where(largest > 0, total / largest, 0.0),
        _rank_of(squares),
        lpq_norm(S, p=p, q=q),
    )
    return StateNorms(*(torch.where(finite, x, torch.nan) for x in norms))


def effective_rank(x: Float[Tensor, "*n i j"]) -> Float[Tensor, "*n"]:
    """Return exp(-sum_i p_i ln p_i) with p_i = sigma_i^2 / sum sigma^2; 0 for a zero matrix.

    The effective rank of Roy and Vetterli 2007 on the energies sigma^2: 1 for a rank-one matrix,
    n if n directions carry the same and the others nothing.
    """
    return _rank_of(_squared_singular_values(x.double()))


def _squared_singular_values(x: Float[Tensor, "*n i j"]) -> Float[Tensor, "*n m"]:
    """Return sigma_i^2 in ascending order, the eigenvalues of the smaller Gram matrix.

    In float64 they are right to 1e-16 of the largest, in a fraction of the time of an SVD.
    """
    gram = x.mT @ x if x.shape[-2] > x.shape[-1] else x @ x.mT
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def write_norms(
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"] | None,
    old: Float[Tensor, "b h t v"] | None = None,
) -> WriteNorms:
    """Return the size of every write, split into what it inserts and what it removes.

    Args:
        k: Keys as written.
        v: Values.
        beta: Write strengths; None is 1.
        old: S_{t-1}^T k_t of `old_values`; None for rules that only add.
    """
    scale = _norm(k.double()) if beta is None else beta.double().abs() * _norm(k.double())
    v = v.double()
    old = torch.zeros_like(v) if old is None else old.double()
    return WriteNorms(scale * _norm(v), scale * _norm(old), scale * _norm(v - old))


def write_norms_of_states(w: Written) -> WriteNorms:
    """Return the same of any rule, from its states: remove = |beta_t k_t v_t^T - (S_t - S_{t-1})|.

    The rule is run token by token.
    """
    norms = write_norms(w.k, w.v, w.beta)
    before: Tensor | float = 0.0 if w.initial_state is None else w.initial_state.double()
    state, removed, changed = w.initial_state, [], []
    for t in range(w.k.shape[2]):
        _, state = w.run(slice(t, t + 1), start=state)
        change = state.double() - before
        u = w.v[:, :, t] if w.beta is None else w.beta[:, :, t, None] * w.v[:, :, t]
        inserted = w.k[:, :, t, :, None].double() * u[..., None, :].double()
        removed.append(_norm((inserted - change).flatten(-2)))
        changed.append(_norm(change.flatten(-2)))
        before = state.double()
    if not removed:
        return norms
    return WriteNorms(norms.insert, torch.stack(removed, dim=2), torch.stack(changed, dim=2))


def old_values(w: Written) -> Float[Tensor, "b h t v"]:
    """Return S_{t-1}^T k_t, what every key retrieved just before it was written.

    With a decay it is what is left after that, and with an erase key what that retrieves: what a
    delta write takes away. One run of the rule: the read after write t is made for the next one.
    """
    if w.k.shape[2] == 0:
        return torch.zeros_like(w.v)
    asking, decay = w.gates.get("erase_key", w.k), w.gates.get("decay")
    if decay is not None:  # (Diag(exp(g)) S)^T p = S^T (exp(g) p)
        asking = asking * (decay if decay.ndim == 4 else decay[..., None]).exp()
    queries = torch.cat([asking[:, :, 1:], torch.zeros_like(w.k[:, :, :1])], dim=2)
    S = w.initial_state
    reads, _ = w.run(q=queries, start=S)
    first = torch.zeros_like(reads[:, :, :1])
    if S is not None:
        first = (asking[:, :, :1].to(S.dtype) @ S).to(reads.dtype)
    return torch.cat([first, reads[:, :, :-1]], dim=2)


def states_along(w: Written, positions: Sequence[int]) -> Float[Tensor, "b h p k v"]:
    """Return the states after the given numbers of writes, to see norms grow.

    Args:
        w: What is written.
        positions: Ascending numbers of writes, 0 to T.

    Raises:
        ValueError: If positions are not ascending or out of range.
    """
    edges = [0, *positions]
    if edges != sorted(edges) or edges[-1] > w.k.shape[2]:
        raise ValueError(
            f"positions={list(positions)} must ascend from 0 to at most {w.k.shape[2]}"
        )
    state, states = w.initial_state, []
    for start, stop in pairwise(edges):
        _, state = w.run(slice(start, stop), start=state)
        states.append(state)
    empty = w.k.new_zeros(*w.k.shape[:2], 0, w.k.shape[3], w.v.shape[3])
    return torch.stack(states, dim=2) if states else empty


def norm_statistics(
    norms: StateNorms | WriteNorms, counted: Bool[Tensor, "b h *n"] | None = None
) -> Statistics:
    """Return the statistics over the batch of `[B, H]` or `[B, H, T]` norms, by head.

    Growth along a sequence is one call for every position.
    """
    parts = zip(norms._fields, norms, strict=True)
    return merge(*(describe(name, x, counted, edges=LOG_EDGES) for name, x in parts))


def _rank_of(squares: Tensor) -> Tensor:
    total = squares.sum(-1, keepdim=True)
    share = squares / torch.where(total > 0, total, 1.0)
    entropy = torch.special.entr(share).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(-1).sqrt()
