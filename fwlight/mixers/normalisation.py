"""What keys and queries are divided by, and what reads are."""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.ops import native
from fwlight.packing import begins_at, sums_since

KEY_NORMS = ("none", "sum", "l2", "l2_smooth")
OUT_NORMS = ("none", "layernorm", "rmsnorm")


def normalise(
    x: Float[Tensor, "*batch k"], norm: str, eps: float, *, allow_native: bool
) -> Float[Tensor, "*batch k"]:
    """Return features divided as one of `KEY_NORMS` says; a zero vector stays zero.

    "sum": their sum and `eps` (Schlag et al. 2021b, eq. 29); "l2": their length, which is taken for
    `eps` where it is less; "l2_smooth": sqrt(sum of squares + eps), as in Gated DeltaNet's code.
    Compiled code divides where it may.
    """
    if norm == "none":
        return x
    compiled = allow_native and x.ndim == 4 and native.can_run(x)
    if norm != "sum":
        norm_of = native.native_l2_norm if compiled else native.plain_l2_norm
        return norm_of(x, eps, smooth=norm == "l2_smooth")
    if compiled:
        return native.native_sum_norm(x, eps)
    total = x.sum(-1, keepdim=True) + eps
    # The inverse of what is no normal number is infinite, and so would be its part of a gradient.
    return x / total.masked_fill(total.abs() < torch.finfo(total.dtype).tiny, 1.0)


class RMSNorm(nn.RMSNorm):
    """As `torch.nn.RMSNorm` over the last dimension, in compiled code where that may run.

    `fwlight.models.dropout.follow_mixers` says where it may.
    """

    def __init__(self, size: int, *, eps: float, allow_native: bool = True) -> None:
        super().__init__(size, eps=eps)
        self.allow_native = allow_native

    def forward(self, x: Tensor) -> Tensor:
        """Divide, and multiply by the gain."""
        if self.allow_native and native.can_run(x):
            return native.native_rms_norm(x, self.weight, cast(float, self.eps))
        return super().forward(x)


def make_out_norm(name: str, d_value: int, eps: float, allow_native: bool) -> nn.Module:
    """Return one of `OUT_NORMS` over a head's output: layernorm has no gain, rmsnorm learns one."""
    made: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "layernorm": lambda: nn.LayerNorm(d_value, elementwise_affine=False),
        "rmsnorm": lambda: RMSNorm(d_value, eps=eps, allow_native=allow_native),
    }
    return made[name]()


def running_key_sum(
    k: Float[Tensor, "b h t k"],
    carried: Float[Tensor, "b h k"] | None,
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t k"]]:
    """Return z_{t-1} and z_t, the sums of the keys before every token and with it.

    Args:
        k: The keys.
        carried: z_0; None is zero.
        starts: True where z begins again.
    """
    b, h, _, d_dot = k.shape
    start = k.new_zeros(b, h, 1, d_dot) if carried is None else carried.to(k.dtype)[:, :, None]
    if starts is None:
        z = torch.cat([start, k], dim=2).cumsum(2)
        return z[:, :, :-1], z[:, :, 1:]
    first = begins_at(starts)
    z = sums_since(k, first) + start * (first < 0)[:, None, :, None]
    before = torch.cat([start, z[:, :, :-1]], dim=2)
    return before.masked_fill(starts[:, None, :, None], 0.0), z


def normalised_write(
    k: Float[Tensor, "b h t k"],
    beta: Float[Tensor, "b h t"],
    z: Float[Tensor, "b h t k"],
    eps: float,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t"]]:
    """Return the k and beta with which the plain delta rule follows eqs. 26-28 of the paper.

    z holds z_{t-1} for every t. With c_t = z_{t-1} . k_t, and c_t = 1 at the first write of an
    empty memory, the value retrieved before the write is divided by c_t when k is divided by c_t;
    beta multiplied by c_t leaves the write itself in proportion. As in the reference code, a key
    orthogonal to all before has c = 0 and writes nothing; maps that are nowhere 0 have no such
    keys.
    """
    empty = (z == 0).all(-1)
    c = (z * k).sum(-1).masked_fill(empty, 1.0)
    return k / (c + eps)[..., None], beta * c


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
