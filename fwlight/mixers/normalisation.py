"""What keys and queries are divided by, and what reads are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.ops import native

KEY_NORMS = ("none", "sum", "l2", "l2_smooth")
OUT_NORMS = ("none", "layernorm", "rmsnorm")


def normalise(
    x: Float[Tensor, "*batch k"], norm: str, eps: float, *, allow_native: bool
) -> Float[Tensor, "*batch k"]:
    """Return features divided as one of `KEY_NORMS` says; a zero vector stays zero.

    "sum": their sum and `eps` (Schlag et al. 2021b, eq. 29); "l2": their length, which is taken for
    `eps` where it is less; "l2_smooth": sqrt(sum of squares + eps), as in Gated DeltaNet's code.
    Compiled code divides by the sum where it may.
    """
    if norm == "none":
        return x
    if norm == "l2":
        return F.normalize(x, dim=-1, eps=max(eps, 1e-12))
    if norm == "l2_smooth":
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + max(eps, 1e-12))
    if allow_native and native.can_run(x):
        return native.native_sum_norm(x, eps)
    total = x.sum(-1, keepdim=True) + eps
    return x / total.masked_fill(total == 0, 1.0)


def make_out_norm(name: str, d_value: int, eps: float) -> nn.Module:
    """Return one of `OUT_NORMS` over a head's output: layernorm has no gain, rmsnorm learns one."""
    made: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "layernorm": lambda: nn.LayerNorm(d_value, elementwise_affine=False),
        "rmsnorm": lambda: nn.RMSNorm(d_value, eps=eps),
    }
    return made[name]()


def running_key_sum(
    k: Float[Tensor, "b h t k"], carried: Float[Tensor, "b h k"] | None
) -> Float[Tensor, "b h n k"]:
    """Return z_0, z_1, ... z_T, the sums of the keys so far, n = t + 1."""
    b, h, _, d_dot = k.shape
    start = k.new_zeros(b, h, 1, d_dot) if carried is None else carried.to(k.dtype)[:, :, None]
    return torch.cat([start, k], dim=2).cumsum(2)


def normalised_write(
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"],
    z: Float[Tensor, "b h n k"],
    eps: float,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t"]]:
    """Return the k and beta with which the plain delta rule follows eqs. 26-28 of the paper.

    With c_t = z_{t-1} . k_t, and c_t = 1 at the first write of an empty memory, the value
    retrieved before the write is divided by c_t when k is divided by c_t; beta multiplied by
    c_t leaves the write itself in proportion. As in the reference code, a key orthogonal to all
    before has c = 0 and writes nothing; maps that are nowhere 0 have no such keys.
    """
    empty = (z[:, :, :-1] == 0).all(-1)
    c = (z[:, :, :-1] * k).sum(-1).masked_fill(empty, 1.0)
    return k / (c + eps)[..., None], beta * c


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
