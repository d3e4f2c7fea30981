"""The L_{p,q} norm of a layer's weights, and the balls of it.

Of V in R^{(d_in + 1) x d_out}, in whose column j stand the weights and the bias of output j,

    |V|_{p,q} = (sum_j (sum_i |v_ij|^p)^(q/p))^(1/q)

(Xu and Wang 2018, Understanding weight normalized deep neural networks with rectified linear units,
NeurIPS).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.sharding import whole

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d


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


def layers_of(network: nn.Module) -> dict[str, Weighted]:
    """Return the linear and convolutional layers of a network, by name."""
    named = network.named_modules()
    return {x.replace("_orig_mod.", ""): y for x, y in named if isinstance(y, Weighted)}


def layer_matrix(layer: Weighted) -> Float[Tensor, "i o"]:
    """Return a layer's weights by input and output, and in a last row its bias."""
    weights = whole(layer.weight).flatten(1).T
    return weights if layer.bias is None else torch.cat([weights, whole(layer.bias)[None]])


def layer_norms(network: nn.Module, *, p: int | float, q: int | float) -> dict[str, Tensor]:
    """Return |V|_{p,q} of every layer of `layers_of`, by name."""
    layers = layers_of(network)
    return {name: lpq_norm(layer_matrix(layer), p=p, q=q) for name, layer in layers.items()}


def log_rademacher(norms: Sequence[float], *, n: int, inputs: int, largest: float = 1.0) -> float:
    """Return ln of a bound on the Rademacher complexity of one output of a ReLU network.

    Of networks whose linear layers have |V_l|_{1,inf} <= c_l, on n examples with |x_i| <= B:

        R_1 = c_1 max(B, 1) sqrt(2 ln(2 (d + 1)) / n),    R_{l+1} = c_{l+1} (2 R_l + 1 / sqrt(n))

    The first is Massart's lemma for the 2 (d + 1) corners of the L1 ball; the second Talagrand's
    contraction for ReLU, twice because a layer takes both signs, and its bias (both lemmas: Mohri,
    Rostamizadeh and Talwalkar 2018, Foundations of Machine Learning). The constants of Xu and Wang
    are others and not claimed.

    Args:
        norms: c_l of every layer, the output's last; see `lpq_norm`.
        n: Examples that were trained on.
        inputs: d, the numbers of an example.
        largest: B, of their absolute values.

    Returns:
        Minus infinity if a layer is 0.
    """
    first, *others = (math.log(c) if c > 0 else -math.inf for c in norms)
    log_r = first + math.log(max(largest, 1) * math.sqrt(2 * math.log(2 * (inputs + 1)) / n))
    for log_c in others:
        log_r = log_c + _log_sum(math.log(2) + log_r, -math.log(n) / 2)
    return log_r


def log_gap(
    log_r: float, *, n: int, classes: int, margin: float = 1.0, delta: float = 0.05
) -> float:
    """Return ln of a bound on the error beyond the training error at a margin.

    With probability 1 - delta the error is at most the share of training examples whose margin is
    below `margin`, and 4 classes R / margin + sqrt(ln(1 / delta) / (2 n)) (Kuznetsov, Mohri and
    Syed 2015, Rademacher complexity margin bounds for learning with a large number of classes,
    theorem 1). That is of norms and a margin chosen before the training, as a bound that layers are
    projected to. Above 0 it says nothing: no error is above 1.

    Args:
        log_r: From `log_rademacher`.
        n: Examples that were trained on.
        classes: How many there are.
        margin: By how much the right class's logit is above all others.
        delta: The probability that the bound does not hold.
    """
    return _log_sum(
        math.log(4 * classes / margin) + log_r, math.log(math.log(1 / delta) / (2 * n)) / 2
    )


def _log_sum(a: float, b: float) -> float:
    """Return ln(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))


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
