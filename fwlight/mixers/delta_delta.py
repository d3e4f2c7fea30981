"""Delta Delta Net: a fast net that programs a fast net."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.feature_maps import FeatureMap
from fwlight.mixers.fast_weights import FastWeights, MemoryState
from fwlight.mixers.gates import UpdateRule
from fwlight.mixers.recurrent import Mask, RecurrentMixer
from fwlight.ops import delta_rule


class DeltaDelta(RecurrentMixer):
    """A Delta Net that programs a Delta Net (Irie et al. 2021, arXiv 2106.06295).

    What the outer one reads is the query, key, value and write strength of the inner one. Both are
    parallel over time.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head.
        feature_map: Makes the map of both; the paper's is elu + 1 over its sum.
        key_norm: Of the features, see `FastWeights`.
        key_norm_eps: See `FastWeights`; 1e-5 in the paper's code.
        slow_base_weights: Whether the outer fast weights start from learnt ones, U(1, 2) at first,
            instead of zero. (The published code has the option and does not train them.)
        update_rule: Of both.
        short_conv: See `RecurrentMixer`.
        output_scale: See `RecurrentMixer`; the paper has none.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        feature_map: Callable[[], FeatureMap],
        key_norm: str = "sum",
        key_norm_eps: float = 1e-5,
        slow_base_weights: bool = False,
        update_rule: UpdateRule = delta_rule,
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        emitted = 3 * d_head + 1
        super().__init__(
            d_model,
            n_heads,
            d_head,
            vectors={"q": d_head, "k": d_head, "v": emitted},
            strengths=n_heads,
            short_conv=short_conv,
            output_scale=output_scale,
        )
        made = partial(
            FastWeights,
            d_head,
            n_heads=n_heads,
            feature_map=feature_map,
            update_rule=update_rule,
            key_norm=key_norm,
            key_norm_eps=key_norm_eps,
            query_norm_eps=key_norm_eps,
        )
        self.outer, self.memory = made(d_value=emitted), made()
        self.allow_native = self.memory.allow_native
        base = torch.empty(n_heads, self.outer.d_dot, emitted).uniform_(1.0, 2.0)
        self.base = nn.Parameter(base) if slow_base_weights else None

    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: tuple[MemoryState, MemoryState],
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], tuple[MemoryState, MemoryState]]:
        """See `RecurrentMixer`."""
        if starts is not None and self.base is not None:
            raise ValueError("slow_base_weights: rows of several sequences begin with empty ones")
        masks = {"starts": starts, "padding_mask": padding_mask}
        gates = self.outer.gates(logits)
        o, outer = self.outer(*given.values(), gates, initial_state=state[0], **masks)
        q, k, v, b = o.split([self.d_head] * 3 + [1], dim=-1)
        gates = self.memory.gates(b.squeeze(-1).transpose(1, 2))
        o, inner = self.memory(q, k, v, gates, initial_state=state[1], **masks)
        return o, (outer, inner)

    def empty_core(self, like: Float[Tensor, "b t m"]) -> tuple[MemoryState, MemoryState]:
        """See `RecurrentMixer`."""
        outer, inner = (
            m.empty_state(like, n_heads=self.n_heads) for m in (self.outer, self.memory)
        )
        if self.base is not None:
            # A copy: decoding writes over states.
            base = self.base.to(outer.weights).expand_as(outer.weights)
            outer = outer._replace(weights=base.clone(memory_format=torch.contiguous_format))
        return outer, inner

    @property
    def memories(self) -> dict[str, FastWeights]:
        """The inner one, and the outer one that programs it."""
        return {"": self.memory, "outer": self.outer}

    @property
    def core_size(self) -> int:
        """See `RecurrentMixer`."""
        return self.n_heads * (self.outer.state_size + self.memory.state_size)
