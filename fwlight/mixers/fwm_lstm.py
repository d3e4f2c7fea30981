"""The Fast Weight Memory of 2021: an LSTM that writes to a memory and asks it several questions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.autocast import without_autocast
from fwlight.checks import check_choice, check_sizes
from fwlight.feature_maps import IdentityFeatureMap
from fwlight.mixers.base import Mixer
from fwlight.mixers.fast_weights import FastWeights
from fwlight.mixers.gates import rule_options
from fwlight.mixers.lstm import LSTM, LSTMState
from fwlight.mixers.normalisation import at_least_float32
from fwlight.mixers.observation import Writes
from fwlight.ops import fwm_rule
from fwlight.ops.fwm_reads import fwm_reads, outer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda x: x, "tanh": torch.tanh}


class FWMState(NamedTuple):
    """What an LSTM with a fast weight memory carries."""

    lstm: LSTMState
    S: Float[Tensor, "b 1 k v"]
    """The fast weights, F of the paper."""


class FWMLSTM(Mixer):
    """An LSTM and its fast weight memory F, a tensor of three dimensions s, r and t.

        a, b, c, g = W_w h_t + b_w             q, r_1 ... r_N = W_r h_t + b_r
        k = tanh(a) (x) tanh(b)                u = scale beta (tanh(c) - F_{t-1}^T k)
        beta = sigmoid(g + 1)                  F'_t = F_{t-1} + k (x) u
                                               F_t = F'_t / max(1, |F'_t|)
        q <- LN(F_t^T (q (x) r_i)), N times    y_t = W_o q + b_o (+ h_t)

    (Schlag, Munkhdalai and Schmidhuber 2021, arXiv 2011.07831, whose three published programs
    differ in the options.) The LSTM does not see what is read, so the whole is parallel over time
    but for the LSTM itself; see `fwlight.ops.fwm_reads`.

    Args:
        d_model: Width of output and the LSTM, and of the input.
        n_heads: Not used.
        d_head: s, r and t, where `sizes` does not say them.
        d_in: Width of the input, where it is another.
        sizes: s, r and t.
        reads: N; with more than one s = t, as an answer is the next query.
        write_scale: None is 1/t.
        act_q: "identity" or "tanh", on the first query.
        act_r: The same on what is asked of it.
        residual: Whether the LSTM's output is added.
        forget_bias: Of the LSTM; see there.
        weight_dropout: Likewise.
        backend: Of `fwlight.ops.fwm_rule`.

    Raises:
        ValueError: If a size is below 1, an option unknown, or s and t differ with several reads.
    """

    bare = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        d_in: int | None = None,
        sizes: Sequence[int] | None = None,
        reads: int = 3,
        write_scale: float | None = None,
        act_q: str = "identity",
        act_r: str = "tanh",
        residual: bool = False,
        forget_bias: float | None = 1.0,
        weight_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        sizes = (d_head,) * 3 if sizes is None else tuple(sizes)
        if len(sizes) != 3:
            raise ValueError(f"sizes={list(sizes)} must be three numbers: s, r and t")
        s, r, t = sizes
        check_sizes(s=s, r=r, t=t, reads=reads)
        if reads > 1 and s != t:
            raise ValueError(
                f"sizes: s={s} and t={t} must be equal with reads={reads}: an answer is the next "
                "query"
            )
        for name, value in (("act_q", act_q), ("act_r", act_r)):
            check_choice(name, value, tuple(ACTIVATIONS))
        self.sizes, self.reads = (s, r, t), reads
        self.write_scale = 1 / t if write_scale is None else write_scale
        self.act_q, self.act_r, self.residual = act_q, act_r, residual
        self.backend = backend
        self.lstm = LSTM(
            d_model,
            n_heads,
            d_head,
            d_in=d_in,
            forget_bias=forget_bias,
            weight_dropout=weight_dropout,
        )
        self.write_proj = nn.Linear(d_model, s + r + t + 1)
        self.read_proj = nn.Linear(d_model, s + reads * r)
        self.out_proj = nn.Linear(t, d_model)
        for projection in (self.write_proj, self.read_proj):
            bound = (6 / (d_model + s)) ** 0.5
            nn.init.uniform_(projection.weight, -bound, bound)
        rule = partial(fwm_rule, project_first=True, backend=backend)
        identity = IdentityFeatureMap
        self.memory = FastWeights(s * r, d_value=t, feature_map=identity, update_rule=rule)
        self.allow_native = self.memory.allow_native

    @property
    def state_size(self) -> int:
        """Of the LSTM and of the memory."""
        return self.lstm.state_size + self.memory.state_size

    def forward(
        self,
        x: Float[Tensor, "b t i"],
        *,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: FWMState | None = None,
    ) -> tuple[Float[Tensor, "b t m"], FWMState]:
        """Run over time; see `Mixer`.

        Raises:
            ValueError: If it is not to be causal, or there are both starts and padding.
        """
        state = self.empty_state(x) if initial_state is None else initial_state
        masks = {"padding_mask": padding_mask, "starts": starts}
        h, lstm = self.lstm(x, causal=causal, initial_state=state.lstm, **masks)
        if x.shape[1] == 0:
            return h, FWMState(lstm, state.S)
        written, asked = self.write_proj(h), self.read_proj(h)
        with without_autocast(x):
            o, S = self._run(written, asked, state.S, **masks)
        y = self.out_proj(o[:, 0].to(self.out_proj.weight.dtype))
        y = y + h if self.residual else y
        if padding_mask is not None:
            y = y.masked_fill(padding_mask[..., None], 0.0)
        return y, FWMState(lstm, S)

    def empty_state(self, like: Float[Tensor, "b t _"]) -> FWMState:
        """Return zeros; see `Mixer`."""
        weights = self.memory.empty_state(like, n_heads=1).weights
        return FWMState(self.lstm.empty_state(like), weights)

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"sizes={self.sizes}, reads={self.reads}, write_scale={self.write_scale:g}"

    def _run(
        self,
        written: Float[Tensor, "b t n"],
        asked: Float[Tensor, "b t m"],
        S: Tensor,
        *,
        padding_mask: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Float[Tensor, "b 1 t v"], Tensor]:
        """Write and read, as one head."""
        memory, (s, r, t) = self.memory, self.sizes
        given = at_least_float32(written)[:, None]
        a, b, c, g = given.split([s, r, t, 1], -1)
        projected, v = outer(a.tanh(), b.tanh()), c.tanh()
        k, _ = memory.keys(projected, None, padding_mask)
        gates = memory.gates(g[:, 0] + 1)
        assert gates.beta is not None  # the rule needs one
        beta = self.write_scale * gates.beta
        q, roles = at_least_float32(asked)[:, None].split([s, self.reads * r], -1)
        q = ACTIVATIONS[self.act_q](q)
        roles = ACTIVATIONS[self.act_r](roles.unflatten(-1, (-1, r)).movedim(3, 2))
        options = rule_options(memory.update_rule, gates, k, padding_mask, starts)
        if memory.observer is not None:
            shown = Writes(projected, k, v, beta, None, S, padding_mask, **options)
            memory.observer.write(shown)
            memory.observer.read(outer(q, roles[:, :, 0]), padding_mask)
        return fwm_reads(
            *(q, roles, k, v, beta),
            empties=options.get("empties"),
            initial_state=S,
            backend=self.backend,
        )
