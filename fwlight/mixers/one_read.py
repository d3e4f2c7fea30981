"""One query to a memory of one-hot values, without forming the memory."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fwlight.autocast import without_autocast
from fwlight.mixers.normalisation import at_least_float32, normalised_write, running_key_sum
from fwlight.mixers.observation import Writes
from fwlight.ops import read_weights

if TYPE_CHECKING:
    from fwlight.mixers.fast_weights import FastWeights


def one_read(
    memory: "FastWeights",
    q: Float[Tensor, "b h d"],
    k: Float[Tensor, "b h t d"],
    ids: Int[Tensor, "b t"],
    beta: Float[Tensor, "b h t"] | None,
) -> Float[Tensor, "b h v"]:
    """Write one-hot values into an empty memory and read it with one query.

    For rules that are linear in the values: o = sum_t a_t v_t costs T K instead of T K V. Arguments
    as of `FastWeights.recall`.
    """
    memory.feature_map.start_sequence()
    projected, heads = k, (-1, k.shape[1], -1)
    with without_autocast(k):
        features = memory.queries(q[:, :, None]).squeeze(2)
        weights = _fused_weights(memory, features, k, beta)
        if weights is None:
            k, _ = memory.keys(k)
            written_k, written_beta = k, beta
            if memory.read_norm == "full" and beta is not None:
                before, _ = running_key_sum(k, None)
                written_k, written_beta = normalised_write(k, beta, before, memory.read_eps)
            if memory.observer is not None:
                v = F.one_hot(ids, memory.d_value).to(k.dtype)[:, None].expand(*heads, -1)
                z = None if memory.read_norm == "none" else k.sum(2)
                memory.observer.write(Writes(projected, written_k, v, written_beta, z))
                memory.observer.read(features[:, :, None])
            weights = read_weights(memory.update_rule, features, written_k, written_beta)
        if memory.read_norm != "none":
            sums = weights if beta is None else (k @ features[..., None]).squeeze(-1)
            weights = weights / (sums.sum(-1, keepdim=True) + memory.read_eps)
        o = weights.new_zeros(*weights.shape[:2], memory.d_value)
        o = o.scatter_add(-1, ids[:, None].expand(heads), weights)
        return memory.out_norm(o * memory.output_scale).to(q.dtype)


def _fused_weights(
    memory: "FastWeights", q: Tensor, k: Tensor, beta: Tensor | None
) -> Tensor | None:
    """Return the weights without storing the features of k, where map and norms allow it."""
    plain = memory.read_norm == "none" or (memory.read_norm == "output" and beta is None)
    if not plain or memory.observer is not None or memory.key_norm not in ("none", "sum"):
        return None
    eps = memory.key_norm_eps if memory.key_norm == "sum" else None
    k = at_least_float32(k)
    return memory.feature_map.read_weights(memory.update_rule, q, k, beta, eps=eps)
