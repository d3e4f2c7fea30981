"""One read of a memory as weights on the values written, without forming the memory."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fwlight.ops import native
from fwlight.ops.backends import allows_native
from fwlight.ops.delta_read import delta_read_weights
from fwlight.ops.delta_rule import delta_rule
from fwlight.ops.sum_rule import sum_rule


def has_read_weights(update_rule: Callable[..., Any]) -> bool:
    """Whether `read_weights` knows a rule, given with or without its options bound."""
    return _plain(update_rule) in (sum_rule, delta_rule)


def read_weights(
    update_rule: Callable[..., Any],
    q: Float[Tensor, "b h k"],
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"] | None,
) -> Float[Tensor, "b h t"]:
    """Return the weights a_t with which one query reads what was written into an empty memory.

        S_T^T q = sum_t a_t v_t

    Under the sum rule a_t = beta_t k_t . q; for the delta rule see `delta_read_weights`.

    Args:
        update_rule: `sum_rule` or `delta_rule`, options bound.
        q: One query, features already.
        k: Keys, features already.
        beta: Write strengths; None for the sum rule's 1.
    """
    if _plain(update_rule) is sum_rule:
        scores = (k @ q[..., None]).squeeze(-1)
        return scores if beta is None else beta * scores
    assert beta is not None
    options = getattr(update_rule, "keywords", {})
    return delta_read_weights(q, k, beta, backend=options.get("backend", "auto"))


def dpfp_read_weights(
    update_rule: Callable[..., Any],
    q: Float[Tensor, "b h k"],
    x: Float[Tensor, "b h t d"],
    beta: Float[Tensor, "b h t"] | None,
    *,
    nu: int,
    eps: float | None,
) -> Float[Tensor, "b h t"] | None:
    """Return what `read_weights` returns for the DPFP features of x, which are never stored.

    Args:
        update_rule: `sum_rule` or `delta_rule`, options bound.
        q: One query, features already, k = 2 d nu.
        x: Keys before the map.
        beta: Write strengths; None for the sum rule's 1.
        nu: Number of blocks of the map.
        eps: Divide the features by their sum and this; None does not.

    Returns:
        The weights, differentiable once; or None where compiled code cannot give them: elsewhere
        than on CPUs, for keys that are not float32 or float64, and if the rule is not one that
        `read_weights` knows or is bound to another back end.

    Raises:
        ValueError: If shapes disagree or there is no such nu.
    """
    if not (has_read_weights(update_rule) and allows_native(update_rule) and native.can_run(x)):
        return None
    d = x.shape[-1]
    if (
        x.ndim != 4
        or not 1 <= nu < 2 * d
        or q.shape != (*x.shape[:2], 2 * d * nu)
        or (beta is not None and beta.shape != x.shape[:3])
    ):
        raise ValueError(
            f"with x [B, H, T, d] and 1 <= nu < 2 d, q must be [B, H, 2 d nu] and beta [B, H, T], "
            f"not x {list(x.shape)}, nu {nu}, q {list(q.shape)} and beta "
            f"{None if beta is None else list(beta.shape)}"
        )
    q, beta = q.to(x.dtype), None if beta is None else beta.to(x.dtype)
    if _plain(update_rule) is sum_rule:
        scores = native.native_dpfp_read(q, x, None, nu, eps)
        return scores if beta is None else beta * scores
    assert beta is not None
    return native.native_dpfp_read(q, x, beta, nu, eps)


def _plain(update_rule: Callable[..., Any]) -> Any:
    return getattr(update_rule, "func", update_rule)
