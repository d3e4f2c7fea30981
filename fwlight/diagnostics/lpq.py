"""The L_{p,q} norm of a layer's weights, and the balls of it.

Of V in R^{(d_in + 1) x d_out}, in whose column j stand the weights and the bias of output j,

    |V|_{p,q} = (sum_j (sum_i |v_ij|^p)^(q/p))^(1/q)

(Xu and Wang 2018, Understanding weight normalized deep neural networks with rectified linear units,
NeurIPS).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def lpq_norm(V: Float[Tensor, "*n i j"], *, p: int | float, q: int | float) -> Float[Tensor, "*n"]:
    """Return the p-norm of every column of V, and of those the q-norm.

    Args:
        V: Matrices.
        p: Exponent over rows, at least 1; may be infinite.
        q: Exponent over columns, likewise.

    Raises:
        ValueError: If an exponent is below 1.
    """
    check_exponents(p=p, q=q)
    columns = torch.linalg.vector_norm(V, ord=p, dim=-2)
    return torch.linalg.vector_norm(columns, ord=q, dim=-1)


def project_lpq(
    V: Float[Tensor, "i j"], *, p: int | float, q: int | float, bound: int | float
) -> Float[Tensor, "i j"]:
    """Return a matrix with |V|_{p,q} <= bound; V itself where it is one already.

    It is the nearest one (in the Euclidean norm) of q = inf, where each column is projected by
    itself, and of q = p, where the matrix is one column, if p is 1, 2 or infinite. Of all other
    exponents the matrix, or column, is made shorter.

    Args:
        V: A matrix.
        p: As of `lpq_norm`.
        q: As of `lpq_norm`.
        bound: Above 0.

    Raises:
        ValueError: If an exponent is below 1, or the bound not above 0.
    """
    check_exponents(p=p, q=q)
    if not bound > 0:
        raise ValueError(f"bound={bound:g} must be above 0")
    columns = V.reshape(-1, 1) if p == q else V
    if p == math.inf and q in (p, math.inf):
        return V.clamp(-bound, bound)
    if q not in (p, math.inf):
        return V * _shortening(lpq_norm(V, p=p, q=q), bound)
    if p == 1:
        return _onto_simplices(columns, bound).view_as(V)
    lengths = torch.linalg.vector_norm(columns, ord=p, dim=0)
    return (columns * _shortening(lengths, bound)).view_as(V)


def check_exponents(**exponents: int | float) -> None:
    """Raise ValueError for the first below 1, which is that of no norm."""
    for name, exponent in exponents.items():
        if not exponent >= 1:
            raise ValueError(f"{name}={exponent} must be at least 1")


def _shortening(length: Tensor, bound: int | float) -> Tensor:
    return bound / length.clamp(min=bound)


def _onto_simplices(V: Float[Tensor, "i j"], bound: int | float) -> Float[Tensor, "i j"]:
    """Return the nearest point of the L1 ball to every column (Duchi et al. 2008, fig. 1).

    It is sign(v) max(|v| - theta, 0), theta being the mean of the largest |v| beyond the bound: of
    as many of them as are above it.
    """
    u = V.abs()
    ranked = u.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(V) + 1, dtype=V.dtype, device=V.device)[:, None]
    thresholds = (ranked.cumsum(0) - bound) / counts
    last = (ranked > thresholds).sum(0, keepdim=True).clamp(min=1) - 1
    theta = thresholds.gather(0, last).clamp(min=0)
    return V.sign() * (u - theta).clamp(min=0)
