"""The reads of the fast weight memory of 2021: the answer to one is part of the next question."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.ops.fwm_rule import fwm_rule, recurrent_fwm_rule


def fwm_reads(
    q: Float[Tensor, "b h t s"],
    r: Float[Tensor, "b h n t r"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"],
    *,
    empties: Bool[Tensor, "b h t"] | None = None,
    initial_state: Float[Tensor, "b h k v"] | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h t v"], Float[Tensor, "b h k v"]]:
    """Write as `fwm_rule` does, every write projected, and read n times after each.

        q_0 = q_t      q_i = LN(S_t^T (q_{i-1} (x) r_{t,i}))      o_t = q_n

    (Schlag et al. 2021a, arXiv 2011.07831.) LN has no gain. No read changes the memory, so each of
    the n is made for all tokens in one call of the rule, which is exact; `recurrent_fwm_reads` is
    the specification.

    Args:
        q: First queries.
        r: What is asked of them, one after the other; K = s r, and s = v where n > 1.
        k: Keys.
        v: Values.
        beta: Write strengths.
        empties: As of `fwm_rule`.
        initial_state: Fast weights S_0 to continue from; None is zero.
        eps: Of LN.
        backend: Of `fwm_rule`.

    Returns:
        o in the dtype of v, and S_T as `fwm_rule` returns it.
    """
    last = initial_state
    alone = k.shape[2] == 1
    for i, r_i in enumerate(r.unbind(2)):
        asked = outer(q, r_i)
        if i and alone and last is not None:
            o = (asked.to(last.dtype) @ last).to(v.dtype)
        else:
            state = initial_state
            if state is not None and not alone and i + 1 < r.shape[2]:
                state = state.clone()  # the kernels may write over it, and it is needed again
            o, last = fwm_rule(
                *(asked, k, v, beta),
                empties=empties,
                project_first=True,
                initial_state=state,
                backend=backend,
            )
            assert o is not None  # there are queries
        q = F.layer_norm(o, o.shape[-1:], eps=eps)
    assert last is not None
    return q, last


def recurrent_fwm_reads(
    q: Tensor, r: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Run token by token, write and then read; this is the specification."""
    outputs: list[Tensor] = []
    S_t = S
    for t in range(k.shape[2]):
        now = slice(t, t + 1)
        written = (k[:, :, now], v[:, :, now], beta[:, :, now])
        _, S_t = recurrent_fwm_rule(None, *written, S_t, project_first=True)
        q_i = q[:, :, t]
        for r_i in r[:, :, :, t].unbind(2):
            o = (outer(q_i, r_i)[..., None, :] @ S_t).squeeze(-2)
            q_i = F.layer_norm(o, o.shape[-1:], eps=eps)
        outputs.append(q_i)
    return torch.stack(outputs, dim=2), S_t


def outer(a: Float[Tensor, "*batch s"], b: Float[Tensor, "*batch r"]) -> Tensor:
    """Return a (x) b in one dimension `[..., s r]`, b's index running faster."""
    return (a[..., :, None] * b[..., None, :]).flatten(-2)
