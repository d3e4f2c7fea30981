"""The memory of softmax attention, the paper's baseline, behind the same signature."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.autocast import without_autocast
from fwlight.mixers.gates import NO_GATES, GateList, Gates
from fwlight.mixers.kernels import Kernel
from fwlight.mixers.normalisation import at_least_float32
from fwlight.mixers.observation import AttentionObserver
from fwlight.packing import begins_at, seen_by


class KeyValueCache(NamedTuple):
    """What softmax attention carries: every key and value so far; it grows with the length."""

    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s v"]
    padding_mask: Bool[Tensor, "b s"] | None


class KeyValues(nn.Module):
    """softmax(q k^T / sqrt(d)) v over everything written (Vaswani et al. 2017, eq. 1).

    Or with weights of another kernel than exp(q.k / sqrt(d)): see `fwlight.mixers.kernels`.

    Args:
        d_head: Size of queries and keys.
        d_value: Size of values; None is `d_head`.
        n_heads: Number of heads.
        dropout: Probability of dropping an attention weight in training.
        kernel: Makes the kernel; None is that of softmax attention.
    """

    has_beta = False
    allow_native = True
    writes = 1
    state_size = None
    """What is carried grows with the length."""
    observer: AttentionObserver | None = None
    """Told of every read while it is set; None costs nothing."""

    def __init__(
        self,
        d_head: int,
        *,
        d_value: int | None = None,
        n_heads: int = 1,
        dropout: float = 0.0,
        kernel: Callable[[], Kernel] | None = None,
    ) -> None:
        super().__init__()
        self.gates = GateList()
        self.d_head, self.n_heads = d_head, n_heads
        self.d_value = d_head if d_value is None else d_value
        self.dropout = dropout
        self.kernel = None if kernel is None else kernel()

    def forward(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t v"],
        gates: Gates = NO_GATES,
        *,
        initial_state: KeyValueCache | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t v"], KeyValueCache]:
        """Attend from each position to itself and everything before; it takes no gates."""
        state = self.write(k, v, gates, initial_state=initial_state, padding_mask=padding_mask)
        if starts is None:
            return self._attend(q, state, causal=True), state
        seen = seen_by(begins_at(starts), state.k.shape[2])
        o = self._attend(q, state, causal=True, seen=seen)
        hidden = ~seen[:, -1:].squeeze(1) | _mask_or_zeros(state.k, state.padding_mask)
        return o, state._replace(padding_mask=hidden)

    def write(
        self,
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t v"],
        gates: Gates = NO_GATES,
        *,
        initial_state: KeyValueCache | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> KeyValueCache:
        """Append keys and values."""
        del gates
        old = initial_state
        if old is None:
            return KeyValueCache(k, v, padding_mask)
        if padding_mask is not None or old.padding_mask is not None:
            padding_mask = torch.cat(
                [_mask_or_zeros(old.k, old.padding_mask), _mask_or_zeros(k, padding_mask)], dim=1
            )
        return KeyValueCache(torch.cat([old.k, k], 2), torch.cat([old.v, v], 2), padding_mask)

    def empty_state(self, like: Float[Tensor, "b t m"], *, n_heads: int) -> KeyValueCache:
        """Return the cache of sequences without a position; see `Mixer.empty_state`."""
        k, v = (like.new_zeros(len(like), n_heads, 0, d) for d in (self.d_head, self.d_value))
        return KeyValueCache(k, v, None)

    def read(self, q: Float[Tensor, "b h t d"], state: KeyValueCache) -> Float[Tensor, "b h t v"]:
        """Attend from every query to everything written."""
        return self._attend(q, state, causal=False)

    def recall(
        self,
        q: Float[Tensor, "b h d"],
        k: Float[Tensor, "b h t d"],
        ids: Int[Tensor, "b t"],
        gates: Gates = NO_GATES,
    ) -> Float[Tensor, "b h v"]:
        """Write one-hot values and read with one query; see `FastWeights.recall`."""
        del gates
        if self.observer is not None:
            self.observer.attend(q[:, :, None], k, None, causal=False)
        if self.kernel is None:
            weights = ((k @ q[..., None]).squeeze(-1) * k.shape[-1] ** -0.5).softmax(-1)
        else:
            weights = self.kernel(q[:, :, None], k).squeeze(2)
        weights = F.dropout(weights, self.dropout, self.training)
        o = weights.new_zeros(*weights.shape[:2], self.d_value)
        return o.scatter_add(-1, ids[:, None].expand_as(weights), weights)

    def _attend(
        self, q: Tensor, state: KeyValueCache, *, causal: bool, seen: Tensor | None = None
    ) -> Tensor:
        if self.observer is not None:
            self.observer.attend(q, state.k, state.padding_mask, causal=causal, seen=seen)
        t, s = q.shape[2], state.k.shape[2]
        mask = None if seen is None else seen[:, None]
        causal = causal and t > 1 and mask is None  # a single query is the last: it sees all
        if causal and (s != t or state.padding_mask is not None or self.kernel):
            mask = q.new_ones(t, s, dtype=torch.bool).tril(s - t)  # queries are the last t of s
        if state.padding_mask is not None:
            real = ~state.padding_mask[:, None, None, :]
            mask = real if mask is None else mask & real
        if self.kernel is not None:
            return self._weigh(self.kernel, q, state, mask)
        return F.scaled_dot_product_attention(
            q,
            state.k,
            state.v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal and mask is None,
        )

    def _weigh(
        self, kernel: Kernel, q: Tensor, state: KeyValueCache, mask: Tensor | None
    ) -> Tensor:
        if mask is not None and mask.ndim == 2:
            mask = mask[None, None]
        with without_autocast(q):  # sums and distances are taken in float32
            k, v = at_least_float32(state.k), at_least_float32(state.v)
            weights = kernel(at_least_float32(q), k, mask)
            weights = F.dropout(weights, self.dropout, self.training)
            return (weights @ v).to(state.v.dtype)


def _mask_or_zeros(k: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask
    return torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
