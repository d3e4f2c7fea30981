"""Linear attention: heads around a fast weight memory."""

from collections.abc import Callable

from fwlight.attention.heads import MultiHeadAttention
from fwlight.attention.memory import FastWeightMemory, UpdateRule, needs_beta
from fwlight.feature_maps import FeatureMap


class FastWeightAttention(MultiHeadAttention):
    """Multi-head attention whose memory is one fast weight matrix per head.

    Rules with a write strength get a learnt one, beta = beta_max * sigmoid(.), per head and
    position (Schlag et al. 2021b, sec. 4.2). Calls are those of `MultiHeadAttention`; the state
    is a `MemoryState` of constant size.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head's q, k and v before the feature map.
        feature_map: Makes the map phi. This and what follows, down to `read_eps`, are the slots
            and numbers of `FastWeightMemory`, described there.
        update_rule: A function of `fwlight.ops`, options bound.
        key_norm: Slot.
        read_norm: Slot.
        out_norm: Slot.
        output_scale: Factor on every read.
        key_norm_eps: For `key_norm`.
        query_norm_eps: For `key_norm`.
        read_eps: For `read_norm`.
        beta_max: Largest write strength: 1, or 2 to allow negative eigenvalues of the state's
            transition (Grazzi et al. 2025).

    Raises:
        ValueError: If a size is below 1, `beta_max` is not positive or a slot is unknown.
    """

    memory: FastWeightMemory

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        feature_map: Callable[[], FeatureMap],
        update_rule: UpdateRule,
        key_norm: str = "none",
        read_norm: str = "none",
        out_norm: str = "none",
        output_scale: float = 1.0,
        key_norm_eps: float = 0.0,
        query_norm_eps: float = 0.0,
        read_eps: float = 1e-5,
        beta_max: float = 1.0,
    ) -> None:
        memory = FastWeightMemory(
            d_head,
            feature_map=feature_map,
            update_rule=update_rule,
            key_norm=key_norm,
            read_norm=read_norm,
            out_norm=out_norm,
            output_scale=output_scale,
            key_norm_eps=key_norm_eps,
            query_norm_eps=query_norm_eps,
            read_eps=read_eps,
        )
        super().__init__(
            d_model,
            n_heads,
            d_head,
            memory=memory,
            has_beta=needs_beta(update_rule),
            beta_max=beta_max,
        )

    @property
    def state_size(self) -> int:
        """How many numbers are carried for one sequence."""
        return self.n_heads * self.memory.state_size
