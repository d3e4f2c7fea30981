"""The fast weights: a memory of five slots and its gates around one state."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.autocast import without_autocast
from fwlight.checks import check_choice, check_rule, check_sizes
from fwlight.feature_maps import FeatureMap
from fwlight.mixers.features import Features
from fwlight.mixers.gates import (
    NO_GATES,
    Gate,
    GateList,
    Gates,
    UpdateRule,
    WriteStrength,
    check_gates,
    needs_beta,
    rule_options,
)
from fwlight.mixers.normalisation import (
    OUT_NORMS,
    at_least_float32,
    make_out_norm,
    normalised_write,
    running_key_sum,
)
from fwlight.mixers.observation import MemoryObserver, Writes
from fwlight.mixers.one_read import one_read
from fwlight.ops import allows_native, has_read_weights

READ_NORMS = ("none", "output", "full")


class MemoryState(NamedTuple):
    """What a memory carries from one segment to the next; its size does not grow."""

    weights: Float[Tensor, "b h k v"]
    """The fast weights S, the transpose of the paper's W."""
    key_sum: Float[Tensor, "b h k"] | None
    """z, the sum of all written keys; None where read_norm is "none"."""
    key_offset: Float[Tensor, "b h"] | None
    """The feature map's constant for this sequence; None for maps without one."""


class FastWeights(Features):
    """Write key/value associations into fast weights and read them with queries.

    With k = phi(k) and q = phi(q), both divided as `key_norm` says, and S of shape [K, V]:

        write   S_t = S_{t-1} + k_t (x) (update rule)        Schlag et al. 2021b, eqs. 17, 24
        read    o_t = S_t^T q_t, divided as `read_norm` says  eqs. 19, 25

    What programs it is emitted by the layer around it: `gates` says how many numbers a token it
    asks for, and makes gates of them.

    Args:
        d_head: Size of incoming queries and keys.
        d_value: Size of incoming values; None is `d_head`.
        n_heads: Number of heads, of which each has its own gates.
        feature_map: Makes this memory's own map phi.
        update_rule: A function of `fwlight.ops`, options bound.
        beta_max: Largest write strength, 1 or 2, of rules that need one; None: every write has
            strength 1. Other rules have none.
        decay: Makes a gate that emits a decay; None is none.
        erase: Makes the gate on the key that erases; None erases with the key itself.
        write: Makes the gate on the value; None writes it as it is.
        writes: Keys and values of one token, written one after the other; the decay comes before
            the first, the query reads after the last (DeltaProduct, Siems et al. 2025).
        key_norm: Of the features of q and k; it and its eps are those of `Features`.
        read_norm: "output" divides the read by z_t . q_t with z the running sum of keys (eq. 21);
            "full" also the value retrieved before a delta write (eqs. 26-28); or "none".
        out_norm: Over each head's output; see `fwlight.mixers.normalisation`.
        value_skip: Add D v_t to the read, D one learnt number a head that starts at 1 (Mamba-2).
        output_scale: Factor on every read; None is d_head^(-1/2), as in the language model of the
            reference code and in gated memories; the paper's equations have none.
        key_norm_eps: See `Features`.
        query_norm_eps: The same for queries.
        read_eps: Added to the divisors of `read_norm`.
        out_norm_eps: Of rmsnorm.

    Raises:
        ValueError: If an option is unknown or a size below 1, a map is given instead of what makes
            one, the rule does not take what a gate emits, read_norm is "full" with a rule that only
            adds, or there is a read_norm beside a decay: z would have to decay too.
    """

    observer: MemoryObserver | None = None
    """Told of every write and read while it is set; None costs nothing."""

    def __init__(
        self,
        d_head: int,
        *,
        d_value: int | None = None,
        n_heads: int = 1,
        feature_map: Callable[[], FeatureMap],
        update_rule: UpdateRule,
        beta_max: float | None = 1.0,
        decay: Callable[..., Gate] | None = None,
        erase: Callable[..., Gate] | None = None,
        write: Callable[..., Gate] | None = None,
        writes: int = 1,
        key_norm: str = "none",
        read_norm: str = "none",
        out_norm: str = "none",
        value_skip: bool = False,
        output_scale: float | None = 1.0,
        key_norm_eps: float = 0.0,
        query_norm_eps: float = 0.0,
        read_eps: float = 1e-5,
        out_norm_eps: float = 1e-5,
    ) -> None:
        check_sizes(n_heads=n_heads, writes=writes)
        check_rule(update_rule)
        super().__init__(
            feature_map=feature_map,
            key_norm=key_norm,
            key_norm_eps=key_norm_eps,
            query_norm_eps=query_norm_eps,
            allow_native=allows_native(update_rule),
        )
        check_choice("read_norm", read_norm, READ_NORMS)
        check_choice("out_norm", out_norm, OUT_NORMS)
        d_value = d_head if d_value is None else d_value
        self.update_rule, self.writes = update_rule, writes
        self.d_head, self.d_value, self.n_heads = d_head, d_value, n_heads
        self.d_dot = self.feature_map.d_dot(d_head)
        self.read_norm, self.read_eps = read_norm, read_eps
        self.output_scale = d_head**-0.5 if output_scale is None else output_scale
        self.out_norm = make_out_norm(out_norm, d_value, out_norm_eps, self.allow_native)
        self.skip = nn.Parameter(torch.ones(n_heads)) if value_skip else None
        sizes = {"n_heads": n_heads, "d_key": self.d_dot, "d_value": d_value}
        gates = [factory(**sizes) for factory in (decay, erase, write) if factory]
        needs = needs_beta(update_rule) and not any("beta" in gate.emits for gate in gates)
        if needs and beta_max is not None:
            gates.insert(0, WriteStrength(**sizes, maximum=beta_max))
        self.gates = GateList(gates, writes=writes)
        self.has_beta = needs_beta(update_rule) or "beta" in self.gates.emits
        check_gates(update_rule, self.gates, read_norm=read_norm)
        if read_norm != "none":
            self.warn_of_signs(reads=True)
        elif not needs_beta(update_rule) and out_norm == "none" and not decay:
            warnings.warn(
                "un-normalised sum: an update rule that only adds, with read_norm=none, "
                "out_norm=none and no decay; the models of the paper have read_norm=output",
                RuntimeWarning,
                stacklevel=2,
            )

    def forward(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h n d"],
        v: Float[Tensor, "b h n v"],
        gates: Gates = NO_GATES,
        *,
        initial_state: MemoryState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t v"], MemoryState]:
        """Write and read token by token, each read after its own writes; n = t `writes`.

        Args:
            q: Queries, before the feature map.
            k: Keys, before the feature map.
            v: Values.
            gates: Those of every write, as `self.gates` emits them.
            initial_state: The state to continue from; None is an empty memory.
            padding_mask: True where a position is padding: it writes nothing.
            starts: True at the first token of a sequence, before which the memory is emptied.

        Raises:
            ValueError: If there are starts and the rule takes no decay.
        """
        o, state = self._run(q, k, v, gates, initial_state, padding_mask, starts)
        assert o is not None  # there were queries
        return o, state

    def write(
        self,
        k: Float[Tensor, "b h n d"],
        v: Float[Tensor, "b h n v"],
        gates: Gates = NO_GATES,
        *,
        initial_state: MemoryState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> MemoryState:
        """Write all associations in order and read nothing; arguments as in `forward`."""
        return self._run(None, k, v, gates, initial_state, padding_mask)[1]

    def read(self, q: Float[Tensor, "b h t d"], state: MemoryState) -> Float[Tensor, "b h t v"]:
        """Read a written memory with any number of queries."""
        dtype = q.dtype
        with without_autocast(q):
            q = self.queries(q).to(state.weights.dtype)
            if self.observer is not None:
                self.observer.read(q)
            o = q @ state.weights
            if state.key_sum is not None:
                o = o / (q @ state.key_sum[..., None] + self.read_eps)
            return self.out_norm(o * self.output_scale).to(dtype)

    def recall(
        self,
        q: Float[Tensor, "b h d"],
        k: Float[Tensor, "b h t d"],
        ids: Int[Tensor, "b t"],
        gates: Gates = NO_GATES,
    ) -> Float[Tensor, "b h v"]:
        """Write one-hot values into an empty memory and read it with one query.

        Returns what `write` and `read` return; see `fwlight.mixers.one_read`.

        Args:
            q: One query, before the feature map.
            k: Keys, before the feature map.
            ids: Which component of each value is 1; below `d_value`.
            gates: As of `write`.
        """
        if has_read_weights(self.update_rule) and gates == Gates(gates.beta):
            return one_read(self, q, k, ids, gates.beta)
        v = F.one_hot(ids, self.d_value).to(k.dtype)[:, None].expand(-1, k.shape[1], -1, -1)
        return self.read(q[:, :, None], self.write(k, v, gates)).squeeze(2)

    def empty_state(self, like: Float[Tensor, "b t m"], *, n_heads: int) -> MemoryState:
        """Return the state of sequences that have written nothing yet; see `Mixer.empty_state`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        weights = like.new_zeros(len(like), n_heads, self.d_dot, self.d_value, dtype=dtype)
        z = None if self.read_norm == "none" else weights[..., 0]
        _, offset = self.keys(like.new_zeros(len(like), n_heads, 0, self.d_head))
        return MemoryState(weights, z, offset)

    @property
    def state_size(self) -> int:
        """How many numbers one head carries for one sequence, not counting a map's one constant."""
        return self.d_dot * (self.d_value + (self.read_norm != "none"))

    # Parts

    def _run(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: MemoryState | None,
        padding_mask: Tensor | None,
        starts: Tensor | None = None,
    ) -> tuple[Tensor | None, MemoryState]:
        if state is None:
            self.feature_map.start_sequence()
        projected, asked = k, padding_mask
        if padding_mask is not None and self.writes > 1:
            padding_mask = padding_mask.repeat_interleave(self.writes, dim=1)
        if starts is not None:  # before the first write of a token
            starts = F.pad(starts[..., None], (0, self.writes - 1)).flatten(1)
        # Sums and divisors are taken in float32; the operators decide about the rest.
        with without_autocast(k):
            offset = None if state is None else state.key_offset
            k, offset = self.keys(k, offset, padding_mask, starts)
            q = None if q is None else self.queries(q)
            v_written = v if gates.write is None else v * gates.write
            options, z = rule_options(self.update_rule, gates, k, padding_mask, starts), None
            written_k, beta = k, gates.beta
            if beta is None and needs_beta(self.update_rule):
                beta = k.new_ones(k.shape[:3])
            if self.read_norm != "none":
                before, z = running_key_sum(k, None if state is None else state.key_sum, starts)
                if self.read_norm == "full" and beta is not None:
                    written_k, beta = normalised_write(k, beta, before, self.read_eps)
            weights = None if state is None else state.weights
            if self.observer is not None:
                last = None if z is None else z[:, :, -1]
                self.observer.write(
                    Writes(
                        *(projected, written_k, v_written, beta, last, weights, padding_mask),
                        **options,
                    )
                )
                if q is not None:
                    self.observer.read(q, asked)
            o, weights = self.update_rule(
                q, written_k, v_written, beta, initial_state=weights, **options
            )
            if o is not None and q is not None:
                if z is not None:
                    z_read = z[:, :, self.writes - 1 :: self.writes]  # after a token's last write
                    o = o / ((z_read * q).sum(-1, keepdim=True) + self.read_eps)
                o = at_least_float32(o) * self.output_scale
                if self.skip is not None:
                    o = o + self.skip[:, None, None] * v[:, :, self.writes - 1 :: self.writes]
                o = self.out_norm(o).to(v.dtype)
        return o, MemoryState(weights, None if z is None else z[:, :, -1], offset)
