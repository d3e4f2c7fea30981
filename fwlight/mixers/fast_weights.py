"""The fast weight memory: five slots around one state."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.autocast import without_autocast
from fwlight.checks import check_choice
from fwlight.feature_maps import DPFPFeatureMap, FeatureMap
from fwlight.mixers.observation import MemoryObserver, Writes
from fwlight.ops import dpfp_read_weights, has_read_weights, native, read_weights

KEY_NORMS = ("none", "sum", "l2")
READ_NORMS = ("none", "output", "full")
OUT_NORMS = ("none", "layernorm", "rmsnorm")
UpdateRule = Callable[..., tuple[Tensor | None, Tensor]]


class MemoryState(NamedTuple):
    """What a memory carries from one segment to the next; its size does not grow."""

    weights: Float[Tensor, "b h k v"]
    """The fast weights S, the transpose of the paper's W."""
    key_sum: Float[Tensor, "b h k"] | None
    """z, the sum of all written keys; None where read_norm is "none"."""
    key_offset: Float[Tensor, "b h"] | None
    """The feature map's constant for this sequence; None for maps without one."""


class FastWeights(nn.Module):
    """Write key/value associations into fast weights and read them with queries.

    With k = phi(k) and q = phi(q), both divided as `key_norm` says, and S of shape [K, V]:

        write   S_t = S_{t-1} + k_t (x) (update rule)        Schlag et al. 2021b, eqs. 17, 24
        read    o_t = S_t^T q_t, divided as `read_norm` says  eqs. 19, 25

    Args:
        d_head: Size of incoming queries and keys.
        d_value: Size of incoming values; None is `d_head`.
        feature_map: Makes this memory's own map phi.
        update_rule: A function of `fwlight.ops`, options bound.
        key_norm: Divide the features of q and k by their "sum" (eq. 29), by their "l2" norm, or
            not ("none"). A zero vector stays zero.
        read_norm: "output" divides the read by z_t . q_t with z the running sum of keys (eq. 21);
            "full" also the value retrieved before a delta write (eqs. 26-28); or "none".
        out_norm: "layernorm" (no gain, the read-out of the fast weight memory), "rmsnorm"
            (learnt gain, DeltaNet) over each head's output, or "none".
        output_scale: Factor on every read; the language model of the reference code has
            d_head^(-1/2) here, the paper's equations have none.
        key_norm_eps: Added to the sum of a key's features; under "l2" the least divisor.
        query_norm_eps: The same for queries.
        read_eps: Added to the divisors of `read_norm`.

    Raises:
        ValueError: If an option is unknown, or read_norm is "full" with a rule that only adds.
    """

    observer: MemoryObserver | None = None
    """Told of every write and read while it is set; None costs nothing."""

    def __init__(
        self,
        d_head: int,
        *,
        d_value: int | None = None,
        feature_map: Callable[[], FeatureMap],
        update_rule: UpdateRule,
        key_norm: str = "none",
        read_norm: str = "none",
        out_norm: str = "none",
        output_scale: float = 1.0,
        key_norm_eps: float = 0.0,
        query_norm_eps: float = 0.0,
        read_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("key_norm", key_norm, KEY_NORMS)
        check_choice("read_norm", read_norm, READ_NORMS)
        check_choice("out_norm", out_norm, OUT_NORMS)
        if read_norm == "full" and not needs_beta(update_rule):
            raise ValueError("read_norm='full' needs a rule that removes: delta or fwm")
        d_value = d_head if d_value is None else d_value
        self.feature_map = feature_map()
        self.update_rule = update_rule
        self.has_beta = needs_beta(update_rule)
        self.d_head, self.d_value = d_head, d_value
        self.d_dot = self.feature_map.d_dot(d_head)
        self.key_norm, self.read_norm = key_norm, read_norm
        self.output_scale = output_scale
        self.key_norm_eps, self.query_norm_eps = key_norm_eps, query_norm_eps
        self.read_eps = read_eps
        self.out_norm: nn.Module = {
            "none": nn.Identity,
            "layernorm": lambda: nn.LayerNorm(d_value, elementwise_affine=False),
            "rmsnorm": lambda: nn.RMSNorm(d_value, eps=1e-5),
        }[out_norm]()

    def forward(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t v"],
        beta: Float[Tensor, "b h t"] | None,
        *,
        initial_state: MemoryState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t v"], MemoryState]:
        """Write and read token by token, each read after its own write.

        Args:
            q: Queries, before the feature map.
            k: Keys, before the feature map.
            v: Values.
            beta: Write strengths; None for rules without.
            initial_state: The state to continue from; None is an empty memory.
            padding_mask: True where a position is padding: it writes nothing.
        """
        o, state = self._run(q, k, v, beta, initial_state, padding_mask)
        assert o is not None  # there were queries
        return o, state

    def write(
        self,
        k: Float[Tensor, "b h t d"],
        v: Float[Tensor, "b h t v"],
        beta: Float[Tensor, "b h t"] | None,
        *,
        initial_state: MemoryState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> MemoryState:
        """Write all associations in order and read nothing; arguments as in `forward`."""
        return self._run(None, k, v, beta, initial_state, padding_mask)[1]

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
        beta: Float[Tensor, "b h t"] | None,
    ) -> Float[Tensor, "b h v"]:
        """Write one-hot values into an empty memory and read it with one query.

        Returns what `write` and `read` return, for rules linear in the values without forming the
        state: o = sum_t a_t v_t costs T K instead of T K V.

        Args:
            q: One query, before the feature map.
            k: Keys, before the feature map.
            ids: Which component of each value is 1; below `d_value`.
            beta: Write strengths; None for rules without.
        """
        heads = (-1, k.shape[1], -1)
        if not has_read_weights(self.update_rule):
            v = F.one_hot(ids, self.d_value).to(k.dtype)[:, None].expand(*heads, -1)
            return self.read(q[:, :, None], self.write(k, v, beta)).squeeze(2)
        self.feature_map.start_sequence()
        projected = k
        with without_autocast(k):
            features = self.queries(q[:, :, None]).squeeze(2)
            weights = self._fused_read_weights(features, k, beta)
            if weights is None:
                k, _ = self._keys(k, None, None)
                written_k, written_beta = k, beta
                if self.read_norm == "full" and beta is not None:
                    z = _running_key_sum(k, None)
                    written_k, written_beta = self._normalised_write(k, beta, z)
                if self.observer is not None:
                    v = F.one_hot(ids, self.d_value).to(k.dtype)[:, None].expand(*heads, -1)
                    z = None if self.read_norm == "none" else k.sum(2)
                    self.observer.write(Writes(projected, written_k, v, written_beta, z))
                    self.observer.read(features[:, :, None])
                weights = read_weights(self.update_rule, features, written_k, written_beta)
            if self.read_norm != "none":
                sums = weights if beta is None else (k @ features[..., None]).squeeze(-1)
                weights = weights / (sums.sum(-1, keepdim=True) + self.read_eps)
            o = weights.new_zeros(*weights.shape[:2], self.d_value)
            o = o.scatter_add(-1, ids[:, None].expand(heads), weights)
            return self.out_norm(o * self.output_scale).to(q.dtype)

    def _fused_read_weights(self, q: Tensor, k: Tensor, beta: Tensor | None) -> Tensor | None:
        """Return the weights of one read without storing the features of k, if that is possible."""
        phi = self.feature_map
        if not isinstance(phi, DPFPFeatureMap) or not phi.is_plain():
            return None
        plain = self.read_norm == "none" or (self.read_norm == "output" and beta is None)
        if not plain or self.observer is not None or self.key_norm == "l2":
            return None
        eps = self.key_norm_eps if self.key_norm == "sum" else None
        k = _at_least_float32(k)
        return dpfp_read_weights(self.update_rule, q, k, beta, nu=phi.nu, eps=eps)

    def empty_state(self, like: Float[Tensor, "b t m"], *, n_heads: int) -> MemoryState:
        """Return the state of sequences that have written nothing yet; see `Mixer.empty_state`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        weights = like.new_zeros(len(like), n_heads, self.d_dot, self.d_value, dtype=dtype)
        z = None if self.read_norm == "none" else weights[..., 0]
        _, offset = self._keys(like.new_zeros(len(like), n_heads, 0, self.d_head), None, None)
        return MemoryState(weights, z, offset)

    @property
    def state_size(self) -> int:
        """How many numbers one head carries for one sequence, not counting a map's one constant."""
        return self.d_dot * (self.d_value + (self.read_norm != "none"))

    def _run(
        self,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        beta: Tensor | None,
        state: MemoryState | None,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor | None, MemoryState]:
        if state is None:
            self.feature_map.start_sequence()
        projected = k
        # Sums and divisors are taken in float32; the operators decide about the rest.
        with without_autocast(k):
            k, offset = self._keys(k, None if state is None else state.key_offset, padding_mask)
            q = None if q is None else self.queries(q)
            written_k, written_beta, z = k, beta, None
            if self.read_norm != "none":
                z = _running_key_sum(k, None if state is None else state.key_sum)
                if self.read_norm == "full" and beta is not None:
                    written_k, written_beta = self._normalised_write(k, beta, z)
            weights = None if state is None else state.weights
            if self.observer is not None:
                last = None if z is None else z[:, :, -1]
                self.observer.write(
                    Writes(projected, written_k, v, written_beta, last, weights, padding_mask)
                )
                if q is not None:
                    self.observer.read(q, padding_mask)
            o, weights = self.update_rule(q, written_k, v, written_beta, initial_state=weights)
            if o is not None and q is not None:
                if z is not None:
                    o = o / ((z[:, :, 1:] * q).sum(-1, keepdim=True) + self.read_eps)
                o = self.out_norm(_at_least_float32(o) * self.output_scale).to(v.dtype)
        return o, MemoryState(weights, None if z is None else z[:, :, -1], offset)

    def _normalised_write(self, k: Tensor, beta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k and beta with which the plain delta rule follows eqs. 26-28.

        With c_t = z_{t-1} . k_t, and c_t = 1 at the first write of an empty memory, the value
        retrieved before the write is divided by c_t when k is divided by c_t; beta multiplied by
        c_t leaves the write itself in proportion. As in the reference code, a key orthogonal to all
        before has c = 0 and writes nothing; maps that are nowhere 0 have no such keys.
        """
        empty = (z[:, :, :-1] == 0).all(-1)
        c = (z[:, :, :-1] * k).sum(-1).masked_fill(empty, 1.0)
        return k / (c + self.read_eps)[..., None], beta * c

    def _keys(
        self, k: Tensor, offset: Tensor | None, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        k = _at_least_float32(k)
        features = self._divided_by_sum(k, self.key_norm_eps)
        if features is None:
            features, offset = self.feature_map.key(
                k,
                offset=offset,
                scale_cancels=self.key_norm != "none",
                padding_mask=padding_mask,
            )
            features = self._normalise(features, self.key_norm_eps)
        if padding_mask is not None:
            # After the normalisation: what is masked earlier could be scaled up again.
            features = features.masked_fill(padding_mask[:, None, :, None], 0.0)
        return features, offset

    def queries(self, q: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t k"]:
        """Return the features with which queries read, normalised."""
        q = _at_least_float32(q)
        features = self._divided_by_sum(q, self.query_norm_eps)
        if features is None:
            features = self._normalise(self.feature_map.query(q), self.query_norm_eps)
        return features

    def _divided_by_sum(self, x: Tensor, eps: float) -> Tensor | None:
        return self.feature_map.divided_by_sum(x, eps) if self.key_norm == "sum" else None

    def _normalise(self, x: Tensor, eps: float) -> Tensor:
        if self.key_norm == "none":
            return x
        if self.key_norm == "l2":
            return F.normalize(x, dim=-1, eps=max(eps, 1e-12))
        if native.can_run(x):
            return native.native_sum_norm(x, eps)
        total = x.sum(-1, keepdim=True) + eps
        return x / total.masked_fill(total == 0, 1.0)


def needs_beta(update_rule: UpdateRule) -> bool:
    """Whether an update rule has a write strength that is not optional."""
    return inspect.signature(update_rule).parameters["beta"].default is inspect.Parameter.empty


def _running_key_sum(k: Tensor, carried: Tensor | None) -> Tensor:
    """Return z_0, z_1, ... z_T `[b, h, t + 1, k]`."""
    b, h, _, d_dot = k.shape
    start = k.new_zeros(b, h, 1, d_dot) if carried is None else carried.to(k.dtype)[:, :, None]
    return torch.cat([start, k], dim=2).cumsum(2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
