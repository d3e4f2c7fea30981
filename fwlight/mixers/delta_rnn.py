"""Delta RNN: a Delta Net whose output sees its own past through fast recurrent weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from fwlight.feature_maps import FeatureMap, SoftmaxFeatureMap
from fwlight.mixers.fast_weights import FastWeights, MemoryState
from fwlight.mixers.gates import Gates, UpdateRule, rule_options
from fwlight.mixers.observation import Writes
from fwlight.mixers.recurrent import Mask, RecurrentMixer, outputs_before
from fwlight.ops import delta_rule
from fwlight.ops.recurrent_scans import delta_rnn_scan


class RecurrentState(NamedTuple):
    """What a Delta RNN or a Delta LSTM carries."""

    memory: MemoryState
    """Of the Delta Net."""
    R: Float[Tensor, "b n d d"]
    """The recurrent weights."""
    h: Float[Tensor, "b h d"]
    """The last output."""
    c: Float[Tensor, "b h d"] | None = None
    """The cell of a Delta LSTM."""


class DeltaRNN(RecurrentMixer):
    """h_t = z_t + R_t^T softmax(h_{t-1}), z of a Delta Net and R written by the delta rule too.

    (Irie et al. 2021, arXiv 2106.06295; equations in `fwlight.ops.recurrent_scans`.)

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head.
        feature_map: Makes the map of the Delta Net's queries and keys; the recurrent keys have a
            softmax. The paper's is elu + 1 over its sum; the published version 1, and the paper's
            reinforcement learning, have a softmax here too.
        key_norm: Of these features, see `FastWeights`.
        key_norm_eps: See `FastWeights`.
        update_rule: Of the Delta Net.
        version: 2, or 1 of the published code, h_t = softmax(z_t + R_t^T h_{t-1}).
        recurrent_eps: Added to the divisor of h's softmax; 1e-6 in the published kernels.
        short_conv: See `RecurrentMixer`.
        output_scale: See `RecurrentMixer`.

    Raises:
        ValueError: If a size is below 1 or an option unknown.
    """

    gates = 1
    """Delta Nets and recurrent weights a head."""
    versions = (1, 2)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        feature_map: Callable[[], FeatureMap],
        key_norm: str = "sum",
        key_norm_eps: float = 0.0,
        update_rule: UpdateRule = delta_rule,
        version: int | None = None,
        recurrent_eps: float = 0.0,
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        version = self.versions[-1] if version is None else version
        if version not in self.versions:
            known = ", ".join(map(str, self.versions))
            raise ValueError(f"version={version} of {type(self).__name__} is none of {known}")
        n = self.gates * n_heads
        super().__init__(
            d_model,
            n_heads,
            d_head,
            vectors=dict.fromkeys(("q", "k", "v", "rk", "rv"), self.gates * d_head),
            strengths=2 * n,
            short_conv=short_conv,
            output_scale=output_scale,
        )
        self.version, self.recurrent_eps = version, recurrent_eps
        self.memory = FastWeights(
            d_head,
            n_heads=n,
            feature_map=feature_map,
            update_rule=update_rule,
            key_norm=key_norm,
            key_norm_eps=key_norm_eps,
            query_norm_eps=key_norm_eps,
        )
        self.recurrent = FastWeights(
            d_head, n_heads=n, feature_map=SoftmaxFeatureMap, update_rule=delta_rule
        )
        self.allow_native = self.memory.allow_native

    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: RecurrentState,
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], RecurrentState]:
        """See `RecurrentMixer`."""
        of_memory, of_recurrent = logits.chunk(2, dim=-1)
        q, k, v, rk, rv = (self._by_gates(x) for x in given.values())
        masks = {"starts": starts, "padding_mask": padding_mask}
        z, memory = self.memory(
            q, k, v, self.memory.gates(of_memory), initial_state=state.memory, **masks
        )
        gates = self.recurrent.gates(of_recurrent)
        rk, beta = self._written(rk, rv, gates, state, **masks)
        backend = "auto" if self.allow_native else "recurrent"
        options = {"version": self.version, "eps": self.recurrent_eps, "backend": backend}
        o, after = self._scan(
            *(z, rk, rv, beta), memory, state, starts=starts, holds=padding_mask, **options
        )
        if self.recurrent.observer is not None:
            before = outputs_before(o, state.h, starts)
            asked = before if self.version == 1 else before.softmax(-1)
            self.recurrent.observer.read(asked.repeat(1, self.gates, 1, 1), padding_mask)
        return o, after

    def empty_core(self, like: Float[Tensor, "b t m"]) -> RecurrentState:
        """See `RecurrentMixer`."""
        n, d = self.gates * self.n_heads, self.d_head
        h = self.zeros(like, self.n_heads, d)
        c = self.zeros(like, self.n_heads, d) if self.gates > 1 else None
        memory = self.memory.empty_state(like, n_heads=n)
        return RecurrentState(memory, self.zeros(like, n, d, d), h, c)

    @property
    def memories(self) -> dict[str, FastWeights]:
        """The Delta Net and the recurrent weights."""
        return {"": self.memory, "recurrent": self.recurrent}

    @property
    def core_size(self) -> int:
        """See `RecurrentMixer`."""
        of_gate = self.memory.state_size + self.d_head**2
        return self.n_heads * (self.gates * of_gate + self.d_head * (1 + (self.gates > 1)))

    def _by_gates(self, x: Float[Tensor, "b h t n"]) -> Tensor:
        """Return what heads are given for several gates as heads, those of one gate together."""
        return x.unflatten(-1, (self.gates, -1)).permute(0, 3, 1, 2, 4).flatten(1, 2)

    def _written(
        self,
        rk: Tensor,
        rv: Tensor,
        gates: Gates,
        state: RecurrentState,
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Tensor, Tensor]:
        """Return what the recurrent weights are written with, and show it to who watches."""
        k, _ = self.recurrent.keys(rk, None, padding_mask)
        beta = gates.beta
        assert beta is not None  # the delta rule needs one
        if self.recurrent.observer is not None:
            options = rule_options(delta_rule, gates, k, padding_mask, starts)
            shown = Writes(rk, k, rv, beta, None, state.R, padding_mask, **options)
            self.recurrent.observer.write(shown)
        return k, beta

    def _scan(
        self,
        z: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        memory: MemoryState,
        state: RecurrentState,
        **options: Any,
    ) -> tuple[Tensor, RecurrentState]:
        o, R, h = delta_rnn_scan(z, k, v, beta, state.R, state.h, **options)
        return o, RecurrentState(memory, R, h)
