"""One read of the delta rule's memory after all writes, as weights of the values."""

import torch
from jaxtyping import Float
from torch import Tensor

from fwlight.ops import native
from fwlight.ops.delta_rule import delta_rule


def delta_read_weights(
    q: Float[Tensor, "b h k"],
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "b h t"]:
    """Return the a with S_T^T q = sum_t a_t v_t, where S_T is what `delta_rule` writes from zero.

    S_T^T q = S_{t-1}^T q_{t-1} + sum_{s>=t} a_s v_s with q_T = q and, from t = T to 1,

        a_t = beta_t k_t.q_t      q_{t-1} = q_t - a_t k_t

    which costs O(T K) and knows no values, where the memory takes O(T K V). It is the delta rule
    run backwards in time, on the state q with values of zero.

    Args:
        q: The one query of every sequence, features already.
        k: Keys, features already.
        beta: Write strengths.
        backend: "native" (C++ on a CPU, differentiable once), "auto", which is "native" on a CPU,
            or a back end of `delta_rule`, which then computes it.

    Returns:
        a in the dtype of q.

    Raises:
        ValueError: If shapes disagree, numbers are integers or the back end is unknown.
    """
    if k.ndim != 4 or q.shape != (*k.shape[:2], k.shape[3]) or beta.shape != k.shape[:3]:
        raise ValueError(
            f"with k [B, H, T, K], q must be [B, H, K] and beta [B, H, T], not k {list(k.shape)}, "
            f"q {list(q.shape)} and beta {list(beta.shape)}"
        )
    for name, x in (("q", q), ("k", k), ("beta", beta)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, not {x.dtype}")
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), beta.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    wanted = q.dtype
    q, k, beta = q.to(dtype), k.to(dtype), beta.to(dtype)
    compiled = backend in ("auto", "native") and not native.transforms_active()
    if compiled and native.obstacle(k, k, dtype) is None:
        return native.native_delta_read(q, k, beta).to(wanted)
    return _weights_by_the_rule(q, k, beta, backend).to(wanted)


def _weights_by_the_rule(q: Tensor, k: Tensor, beta: Tensor, backend: str) -> Tensor:
    """Read with every key just before it is written, which is just after the write of the next."""
    k = k.flip(2)
    queries = torch.cat([k[:, :, 1:], torch.zeros_like(k[:, :, :1])], dim=2)
    nothing = torch.zeros_like(k[..., :1])
    state = q[..., None]
    o, _ = delta_rule(queries, k, nothing, beta.flip(2), initial_state=state, backend=backend)
    assert o is not None
    first = (k[:, :, :1] * q[:, :, None]).sum(-1)
    return beta * torch.cat([first, o[:, :, :-1, 0]], dim=2).flip(2)
