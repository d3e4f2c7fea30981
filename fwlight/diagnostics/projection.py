"""How often a rule that keeps its memory within the unit ball has to shrink it."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fwlight.diagnostics.norms import old_values
from fwlight.diagnostics.statistics import Statistics, describe, written
from fwlight.diagnostics.written import Written


def projection(
    rule: Callable[..., Any],
    *,
    d_dot: int,
    d_value: int,
    has_beta: bool,
    device: torch.device | None = None,
) -> str:
    """Say whether a rule shrinks what grows above a Frobenius norm of 1, found by two writes.

    Args:
        rule: A function like those of `fwlight.ops`, options bound.
        d_dot: Numbers in a key as it is written.
        d_value: Numbers in a value.
        has_beta: Whether it takes a write strength.
        device: Where it is tried.

    Returns:
        "none", "later": all but the first write into an empty memory, or "all".
    """
    k, v = (torch.zeros(1, 1, 2, size, device=device) for size in (d_dot, d_value))
    k[..., 0], v[..., 0] = 1.0, 1e3
    norms = []
    for n in (1, 2):
        beta = torch.ones_like(k[:, :, :n, 0]) if has_beta else None
        _, S = rule(None, k[:, :, :n], v[:, :, :n], beta)
        norms.append(float(S.square().sum().sqrt()))
    if abs(norms[1] - 1) > 1e-3:
        return "none"
    return "later" if norms[0] > 1.001 else "all"


def projection_of(w: Written) -> str:
    """Return `projection` of the rule with which something was written."""
    sizes = {"d_dot": w.k.shape[3], "d_value": w.v.shape[3]}
    return projection(w.rule, has_beta=w.beta is not None, device=w.k.device, **sizes)


def shrunk_writes(w: Written) -> Bool[Tensor, "b h t"]:
    """Return which writes the projection of a delta rule shrinks: those with |S'_t| > 1.

        S'_t = S_{t-1} + k_t (x) u_t      u_t = beta_t (v_t - S_{t-1}^T k_t)
        |S'_t|^2 = |S_{t-1}|^2 + 2 (S_{t-1}^T k_t) . u_t + |k_t|^2 |u_t|^2

    (Schlag et al. 2021a.) No state but the norms is kept.

    Args:
        w: What is written, `real`.
    """
    beta = torch.ones_like(w.k[..., 0]) if w.beta is None else w.beta
    empties = w.gates.get("empties")
    old = old_values(w).double()
    if empties is not None:
        old = old.masked_fill(empties[..., None], 0.0)
    u = beta[..., None].double() * (w.v - old)
    grown = 2 * (old * u).sum(-1) + w.k.double().square().sum(-1) * u.square().sum(-1)
    kind = projection_of(w)
    nothing = (beta == 0) | (w.k == 0).all(-1)  # which leaves the state as it is
    norm = grown.new_zeros(grown.shape[:2])
    if w.initial_state is not None:
        norm = w.initial_state.double().square().sum((-2, -1))
    shrunk = torch.zeros_like(grown, dtype=torch.bool)
    for t in range(grown.shape[2]):
        if empties is not None:
            norm = norm.masked_fill(empties[:, :, t], 0.0)
        after = norm + grown[:, :, t]
        shrunk[:, :, t] = (after > 1) & ((norm > 0) | (kind == "all")) & (kind != "none")
        shrunk[:, :, t] &= ~nothing[:, :, t]
        norm = after.masked_fill(shrunk[:, :, t], 1.0)
    return shrunk


def shrunk_statistics(w: Written) -> Statistics:
    """Return the statistics of `shrunk`, 1 for a write that is shrunk and 0 for another.

    Counted are writes whose key and strength are not zero.
    """
    counted = written(w.k, w.padding_mask)
    if w.beta is not None:
        counted &= w.beta != 0
    return describe("shrunk", shrunk_writes(w).double(), counted)
