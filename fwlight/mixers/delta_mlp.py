"""Delta MLP: a fast net of several layers, each written by the delta rule."""

from collections.abc import Callable
from functools import partial
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.feature_maps import FeatureMap
from fwlight.mixers.fast_weights import FastWeights, MemoryState
from fwlight.mixers.gates import UpdateRule
from fwlight.mixers.recurrent import Mask, RecurrentMixer
from fwlight.ops import delta_rule

WIDTH = 4
"""Of a fast layer between two, in heads."""


class DeltaMLP(RecurrentMixer):
    """`depth` fast feed-forward layers with residual connections, each of two fast matrices.

        s_0 = q      a = A_j^T phi(LN_j(s_{j-1}))      s_j = s_{j-1} + B_j^T phi(a)

    with A_j `[d, 4 d]` and B_j `[4 d, d]` written by the delta rule from keys, values and write
    strengths of their own (Irie et al. 2021, arXiv 2106.06295). No layer's writes depend on
    another's reads: all of it is parallel over time. The published code emits twice as many keys
    and values as it uses; here there are none of these.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head.
        depth: Number of fast layers.
        feature_map: Makes phi; the paper's is elu + 1 over its sum.
        key_norm: Of the features, see `FastWeights`.
        key_norm_eps: See `FastWeights`; 1e-5 in the paper's code.
        update_rule: Of all matrices.
        short_conv: See `RecurrentMixer`.
        output_scale: See `RecurrentMixer`; the paper has none.

    Raises:
        ValueError: If a size or the depth is below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        depth: int = 1,
        feature_map: Callable[[], FeatureMap],
        key_norm: str = "sum",
        key_norm_eps: float = 1e-5,
        update_rule: UpdateRule = delta_rule,
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        check_sizes(depth=depth)
        wide = WIDTH * d_head
        sizes = [("k", d_head), ("v", wide), ("K", wide), ("V", d_head)]
        super().__init__(
            d_model,
            n_heads,
            d_head,
            vectors={"q": d_head} | {f"{n}{j}": s for j in range(depth) for n, s in sizes},
            strengths=2 * depth * n_heads,
            short_conv=short_conv,
            output_scale=output_scale,
        )
        self.depth = depth
        made = partial(
            FastWeights,
            n_heads=n_heads,
            feature_map=feature_map,
            update_rule=update_rule,
            key_norm=key_norm,
            key_norm_eps=key_norm_eps,
            query_norm_eps=key_norm_eps,
        )
        self.layers = nn.ModuleList(
            made(size, d_value=d_value)
            for _ in range(depth)
            for size, d_value in ((d_head, wide), (wide, d_head))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d_head) for _ in range(depth))
        self.allow_native = all(memory.allow_native for memory in self.memories.values())

    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: tuple[MemoryState, ...],
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], tuple[MemoryState, ...]]:
        """See `RecurrentMixer`."""
        s, *written = given.values()
        masks = {"starts": starts, "padding_mask": padding_mask}
        pairs = list(zip(written[::2], written[1::2], strict=True))
        states, a = [], s
        for i, memory in enumerate(self.memories.values()):
            k, v = pairs[i]
            norm = cast(nn.LayerNorm, self.norms[i // 2])
            asked = a if i % 2 else norm(s.to(norm.weight.dtype)).to(s)
            gates = memory.gates(logits.chunk(len(pairs), dim=-1)[i])
            a, after = memory(asked, k, v, gates, initial_state=state[i], **masks)
            s = s + a if i % 2 else s
            states.append(after)
        return s, tuple(states)

    def empty_core(self, like: Float[Tensor, "b t m"]) -> tuple[MemoryState, ...]:
        """See `RecurrentMixer`."""
        return tuple(m.empty_state(like, n_heads=self.n_heads) for m in self.memories.values())

    @property
    def memories(self) -> dict[str, FastWeights]:
        """The matrices in their order."""
        named = {f"fast{i}" if i else "": memory for i, memory in enumerate(self.layers)}
        return cast(dict[str, FastWeights], named)

    @property
    def core_size(self) -> int:
        """See `RecurrentMixer`."""
        return self.n_heads * sum(memory.state_size for memory in self.memories.values())
