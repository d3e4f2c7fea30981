"""What other memories would return for the same keys, values and queries, token by token."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fwlight.diagnostics.capacity import cluster_keys
from fwlight.diagnostics.written import Written

_NUMBERS = 2**22
"""Of Gram matrices or repeated keys that are there at a time: tens of megabytes."""


def latest(k: Float[Tensor, "b h t k"], seen: Bool[Tensor, "b t s"]) -> Bool[Tensor, "b h t s"]:
    """Return which of the writes that each position sees were not superseded by then.

    Superseded is what was written before another write to the same key, that is with a cosine of at
    least 0.95. `seen` lets no position see what is written after it.
    """
    same = cluster_keys(k).same.triu(1)
    following = torch.where(same.any(-1), same.byte().argmax(-1), k.shape[2])
    places = torch.arange(k.shape[2], device=k.device)
    return seen[:, None] & (following[:, :, None] > places[:, None])


def reads_without(
    w: Written, q: Float[Tensor, "b h t k"], kept: Bool[Tensor, "b h t s"], *, divided: bool = False
) -> Float[Tensor, "b h t v"]:
    """Return what every query reads where only its `kept` writes were ever made; decays stay.

    The rule runs once for every query, so that what is left out has left no trace: O(T^2) writes a
    sequence.

    Args:
        w: What is written, one write a position, into an empty memory.
        q: A query for every position.
        kept: Nothing after the position, and nothing of another document.
        divided: Whether reads are divided by the sum of the kept keys times the query.
    """
    b, h, t, d = w.k.shape
    places = torch.arange(t, device=w.k.device)
    step, parts = max(1, _NUMBERS // (h * t * d)), []
    for row in range(b):
        for start in range(0, t, step):
            at = slice(start, start + step)
            keep = kept[row, :, at].transpose(0, 1)  # [n, h, s]
            k, v = (x[row] * keep[..., None] for x in (w.k, w.v))
            beta = None if w.beta is None else w.beta[row] * keep
            after = places > places[at, None]
            gates = {}
            for name, x in w.gates.items():
                hidden = after[:, None] if x.ndim == 3 else after[:, None, :, None]
                gates[name] = x[row].expand(len(keep), *x.shape[1:]).masked_fill(hidden, 0)
            _, S = w.rule(None, k, v, beta, initial_state=None, **gates)
            asked = q[row, :, at].transpose(0, 1)[:, :, None].to(S.dtype)
            reads = (asked @ S).squeeze(2)
            if divided:
                reads = reads / ((k.sum(2)[:, :, None] * asked).sum(-1) + w.read_eps)
            parts.append(reads)
    return torch.cat(parts).unflatten(0, (b, t)).transpose(1, 2)


def linear_reads(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    kept: Bool[Tensor, "b h n t"],
    *,
    ridge: float,
) -> Float[Tensor, "b h n v"]:
    """Return what each query reads from the best linear memory of its kept associations.

    That is W q with W = argmin sum_s |W k_s - v_s|^2 + lambda |W|^2, lambda being `ridge` times the
    mean eigenvalue of sum_s k_s k_s^T: as ridge goes to 0, V K^+. In float64.
    """
    d = k.shape[-1]
    step, parts = max(1, _NUMBERS // (d * max(d, k.shape[2]))), []
    identity = torch.eye(d, dtype=torch.float64, device=k.device)
    heads = zip(*(x.flatten(0, 1) for x in (q, k, v, kept)), strict=True)
    for queries, keys, values, mask in (
        (a.double(), b.double(), c.double(), m) for a, b, c, m in heads
    ):
        for start in range(0, len(queries), step):
            at = slice(start, start + step)
            grams = (mask[at, :, None] * keys).mT @ keys
            mean = grams.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
            factor = torch.linalg.cholesky(grams + (ridge * mean + 1e-300) * identity)
            solved = torch.cholesky_solve(queries[at, :, None], factor)
            weights = torch.where(mask[at], (solved.mT @ keys.T).squeeze(1), 0.0)
            parts.append(weights @ values)
    shape = (*q.shape[:3], v.shape[-1])
    return torch.cat(parts).view(shape) if parts else v.new_zeros(shape, dtype=torch.float64)


def nearest_reads(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    kept: Bool[Tensor, "b h n t"],
) -> Float[Tensor, "b h n v"]:
    """Return the value under the kept key that is nearest in cosine to each query; 0 without."""
    cosine = _cosine(q, k).masked_fill(~kept, -torch.inf)
    index = cosine.argmax(-1)[..., None].expand(-1, -1, -1, v.shape[-1])
    return v.gather(2, index).masked_fill(~kept.any(-1, keepdim=True), 0.0)


def softmax_reads(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    seen: Bool[Tensor, "b n t"],
    *,
    temperature: float,
) -> Float[Tensor, "b h n v"]:
    """Return the mean of all seen values weighted by exp(cosine of query and key / temperature)."""
    scores = (_cosine(q, k) / temperature).masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def rescaled(
    reads: Float[Tensor, "b h n v"], like: Float[Tensor, "b h n v"]
) -> Float[Tensor, "b h n v"]:
    """Return reads times one least-squares factor a head, which makes them as like as it can.

    How long its reads are is what the layers behind a memory have got used to.
    """
    reads, like = reads.double(), like.double()
    energy = reads.square().sum((0, 2, 3), keepdim=True)
    factor = (reads * like).sum((0, 2, 3), keepdim=True) / torch.where(energy > 0, energy, 1.0)
    return factor * reads


def _cosine(q: Tensor, k: Tensor) -> Tensor:
    q, k = (F.normalize(x, dim=-1, eps=1e-30) for x in (q, k))
    return q @ k.mT
