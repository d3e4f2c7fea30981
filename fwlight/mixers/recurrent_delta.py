"""Recurrent Delta Net: a slow net that sees what the fast net last said."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.feature_maps import SoftmaxFeatureMap
from fwlight.mixers.fast_weights import FastWeights
from fwlight.mixers.gates import NO_GATES, rule_options
from fwlight.mixers.observation import Writes
from fwlight.mixers.recurrent import Mask, RecurrentMixer, outputs_before
from fwlight.ops import delta_rule
from fwlight.ops.recurrent_scans import SlowRecurrence, recurrent_delta_scan, recurrent_keys


class RecurrentDeltaState(NamedTuple):
    """What a Recurrent Delta Net carries."""

    S: Float[Tensor, "b h d d"]
    """The fast weights."""
    y: Float[Tensor, "b h d"]
    """What was read last."""


class RecurrentDelta(RecurrentMixer):
    """A Delta Net whose queries, keys, values and write strengths depend on its last output.

    (Irie et al. 2021, arXiv 2106.06295; equations in `fwlight.ops.recurrent_scans`.) The recurrent
    weights are slow: learnt, and the same for all sequences. They start as N(0, std d_head^(-1/2)).

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head.
        recurrent_std: See above.
        backend: "auto", "native" (compiled, on a CPU) or "recurrent" (token by token).
        short_conv: See `RecurrentMixer`.
        output_scale: See `RecurrentMixer`.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        recurrent_std: float = 1.0,
        backend: str = "auto",
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        super().__init__(
            d_model,
            n_heads,
            d_head,
            vectors=dict.fromkeys(("q", "k", "v"), d_head),
            strengths=n_heads,
            short_conv=short_conv,
            output_scale=output_scale,
        )
        self.backend, self.allow_native = backend, backend != "recurrent"
        # It writes nothing itself: it is where the core shows what it wrote.
        self.memory = FastWeights(
            d_head, n_heads=n_heads, feature_map=SoftmaxFeatureMap, update_rule=delta_rule
        )
        std = recurrent_std * d_head**-0.5
        matrices = (torch.empty(n_heads, d_head, d_head).normal_(0.0, std) for _ in range(3))
        self.R_q, self.R_k, self.R_v = map(nn.Parameter, matrices)
        self.r_b = nn.Parameter(torch.empty(n_heads, d_head).normal_(0.0, std))

    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: RecurrentDeltaState,
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], RecurrentDeltaState]:
        """See `RecurrentMixer`."""
        parts = given["q"], given["k"], given["v"], logits.transpose(1, 2)
        slow = SlowRecurrence(
            *(x.to(logits.dtype) for x in (self.R_q, self.R_k, self.R_v, self.r_b))
        )
        options = {"starts": starts, "holds": padding_mask, "backend": self.backend}
        o, S, y = recurrent_delta_scan(*parts, state.S, state.y, slow, **options)
        if self.memory.observer is not None:
            before = outputs_before(o, state.y, starts)
            q, k, v, beta = recurrent_keys(*parts, before, slow)
            options = rule_options(delta_rule, NO_GATES, k, padding_mask, starts)
            shown = Writes(given["k"], k, v, beta, None, state.S, padding_mask, **options)
            self.memory.observer.write(shown)
            self.memory.observer.read(q, padding_mask)
        return o, RecurrentDeltaState(S, y)

    def empty_core(self, like: Float[Tensor, "b t m"]) -> RecurrentDeltaState:
        """See `RecurrentMixer`."""
        h, d = self.n_heads, self.d_head
        return RecurrentDeltaState(self.zeros(like, h, d, d), self.zeros(like, h, d))

    @property
    def memories(self) -> dict[str, FastWeights]:
        """What the core writes."""
        return {"": self.memory}

    @property
    def core_size(self) -> int:
        """See `RecurrentMixer`."""
        return self.n_heads * self.d_head * (self.d_head + 1)
