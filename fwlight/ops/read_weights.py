"""One read of a memory as weights on the values written, without forming the memory."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops.delta_rule import delta_rule
from fwlight.ops.sum_rule import sum_rule


def has_read_weights(update_rule: Callable[..., Any]) -> bool:
    """Whether `read_weights` knows a rule: it must be linear in the values."""
    return getattr(update_rule, "func", update_rule) in (sum_rule, delta_rule)


def read_weights(
    update_rule: Callable[..., Any],
    q: Float[Tensor, "b h k"],
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"] | None,
) -> Float[Tensor, "b h t"]:
    """Return the weights a_t with which one query reads what was written into an empty memory.

        S_T^T q = sum_t a_t v_t

    costs T K, however large the values are. Under the sum rule a_t = beta_t k_t . q. Under the
    delta rule a query that goes back in time loses what each write replaced,

        a_t = beta_t k_t . q_t      q_{t-1} = q_t - a_t k_t      q_T = q

    which is the delta rule itself on reversed keys, with values of size 1 that are 0.

    Args:
        update_rule: `sum_rule` or `delta_rule`, options bound.
        q: One query, features already.
        k: Keys, features already.
        beta: Write strengths; None for the sum rule's 1.
    """
    first = (k @ q[..., None]).squeeze(-1)
    if getattr(update_rule, "func", update_rule) is sum_rule:
        return first if beta is None else beta * first
    assert beta is not None
    keys, strengths = k.flip(2), beta.flip(2)
    o, _ = update_rule(
        keys.roll(-1, 2),  # each state is read with the next key; the last read is not needed
        keys,
        keys.new_zeros(*beta.shape, 1),
        strengths,
        initial_state=q[..., None],
    )
    seen = torch.cat([first[:, :, -1:], o[:, :, :-1, 0]], dim=2)
    return (strengths * seen).flip(2)
