"""What the recurrent cores of `recurrent_scans` share: one token's steps, masks, the back end."""

import warnings
from collections.abc import Iterator, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.ops.native import scans

BACKENDS = ("auto", "native", "recurrent")
Mask = Bool[Tensor, "b t"] | None


def softmax(x: Float[Tensor, "*n d"], eps: float = 0.0) -> Float[Tensor, "*n d"]:
    """exp(x - max) / (sum + eps): the kernels of the paper's code have eps = 1e-6."""
    if eps == 0.0:
        return x.softmax(-1)
    e = (x - x.amax(-1, keepdim=True).detach()).exp()
    return e / (e.sum(-1, keepdim=True) + eps)


def compiled(backend: str, x: Tensor, *masks: Tensor | None) -> bool:
    """Say whether a compiled scan is to run; warn where it was asked for and cannot."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "recurrent":
        return False
    masked = any(mask is not None for mask in masks)
    obstacle = "there are masks" if masked else scans.scan_obstacle(x)
    if backend == "native" and obstacle is not None:
        message = f"backend='native' cannot run here ({obstacle}); using backend='recurrent'"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return obstacle is None


def read(S: Float[Tensor, "b h k v"], q: Float[Tensor, "b h k"]) -> Float[Tensor, "b h v"]:
    """S^T q."""
    return (q[..., None, :] @ S).squeeze(-2)


def write(S: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """S + k (x) beta (v - S^T k)."""
    return S + k[..., :, None] * (beta[..., None] * (v - read(S, k)))[..., None, :]


def tokens(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return what sequences hold at every token."""
    return zip(*(x.unbind(2) for x in sequences), strict=True)


def begun(starts: Tensor | None, t: int, *states: Tensor) -> list[Tensor]:
    """Return states, zero where a sequence begins."""
    if starts is None:
        return list(states)
    return [x.masked_fill(_over(starts[:, t], x), 0.0) for x in states]


def held(
    holds: Tensor | None, t: int, new: Sequence[Tensor], old: Sequence[Tensor]
) -> list[Tensor]:
    """Return new states, old ones where a position is padding."""
    if holds is None:
        return list(new)
    return [b.where(_over(holds[:, t], b), a) for a, b in zip(new, old, strict=True)]


def _over(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *(1 for _ in x.shape[1:]))
