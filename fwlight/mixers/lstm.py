"""The LSTM, a baseline: a recurrent net whose weights are all slow."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fwlight.checks import check_probabilities, check_sizes
from fwlight.mixers.base import Mixer
from fwlight.packing import Pieces


class LSTMState(NamedTuple):
    """What an LSTM carries."""

    h: Float[Tensor, "b m"]
    c: Float[Tensor, "b m"]


class LSTM(Mixer):
    """torch.nn.LSTM of one layer as wide as the network, and nothing around it.

    A stack of these is a plain LSTM of several layers: no residual connections, norms or
    feed-forward layers.

    Args:
        d_model: Width of output and state, and of the input.
        n_heads: Not used.
        d_head: Not used.
        d_in: Width of the input, where it is another.
        forget_bias: One bias in place of torch's two, which starts at 0, in the forget gate at this
            value; None: as torch has it.
        weight_dropout: Probability with which each hidden-to-hidden weight is dropped in training,
            for all tokens of a pass (DropConnect; Merity et al. 2018, arXiv 1708.02182, sec. 2).

    Raises:
        ValueError: If the width is below 1, or that no probability.
    """

    bare = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        d_in: int | None = None,
        forget_bias: float | None = None,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        del n_heads, d_head
        d_in = d_model if d_in is None else d_in
        check_sizes(d_model=d_model, d_in=d_in)
        check_probabilities(weight_dropout=weight_dropout)
        self.one_bias, self.weight_dropout = forget_bias is not None, weight_dropout
        if forget_bias is None:
            self.lstm = nn.LSTM(d_in, d_model, batch_first=True)
            return
        # One bias is the weight of an input that is always 1.
        self.lstm = nn.LSTM(d_in + 1, d_model, bias=False, batch_first=True)
        with torch.no_grad():
            bias = cast(Tensor, self.lstm.weight_ih_l0)[:, -1]
            bias.zero_()[d_model : 2 * d_model] = forget_bias  # after the input gate

    @property
    def state_size(self) -> int:
        """H and c."""
        return 2 * self.lstm.hidden_size

    def forward(
        self,
        x: Float[Tensor, "b t i"],
        *,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: LSTMState | None = None,
    ) -> tuple[Float[Tensor, "b t m"], LSTMState]:
        """Run over time; see `Mixer`.

        Raises:
            ValueError: If it is not to be causal, or there are both starts and padding.
        """
        if not causal:
            raise ValueError("LSTM sees no later tokens: no encoder and no cross-attention")
        state = self.empty_state(x) if initial_state is None else initial_state
        if x.shape[1] == 0:
            return x.new_zeros(len(x), 0, self.lstm.hidden_size), state
        if self.one_bias:
            x = F.pad(x, (0, 1), value=1.0)
        if starts is not None:
            if padding_mask is not None:
                raise ValueError("rows of several sequences have no padding between tokens")
            return self._apart(x, starts, state)
        if padding_mask is None:
            y, (h, c) = self._run(x, state)
            return y, LSTMState(h[0], c[0])
        order = padding_mask.int().argsort(dim=1, stable=True)[..., None]
        y, after = self._real(x.gather(1, order.expand_as(x)), (~padding_mask).sum(1), state)
        y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        return y.masked_fill(padding_mask[..., None], 0.0), after

    def empty_state(self, like: Float[Tensor, "b t _"]) -> LSTMState:
        """Return zeros; see `Mixer`."""
        zeros = like.new_zeros(len(like), self.lstm.hidden_size)
        return LSTMState(zeros, zeros.clone())

    def _apart(self, x: Tensor, starts: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Run every sequence of the rows from nothing, the first of a row from its state."""
        pieces = Pieces(starts)
        piece, mask = pieces.place[0], pieces.padding_mask
        first = piece[:, 0]
        goes_on = LSTMState(*(s.masked_fill(starts[:, :1], 0.0) for s in state))
        begun = [s.new_zeros(len(mask), s.shape[1]).index_put((first,), s) for s in goes_on]
        laid_out = pieces.lay_out(x[:, None]).squeeze(1)
        y, after = self._real(laid_out, (~mask).sum(1), LSTMState(*begun))
        last = piece[:, -1]
        return pieces.back(y[:, None]).squeeze(1), LSTMState(after.h[last], after.c[last])

    def _real(self, x: Tensor, lengths: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Run over the first tokens of every row, so many each."""
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, (h, c) = self._run(packed, state)
        y, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        nothing = (lengths == 0)[:, None]
        return y, LSTMState(state.h.where(nothing, h[0]), state.c.where(nothing, c[0]))

    def _run(self, x: Any, state: LSTMState) -> tuple[Any, tuple[Tensor, Tensor]]:
        given = x, (state.h[None].contiguous(), state.c[None].contiguous())
        if not self.training or self.weight_dropout == 0:
            return self.lstm(*given)
        name = "weight_hh_l0"
        dropped = F.dropout(self.lstm.get_parameter(name), self.weight_dropout)
        return functional_call(self.lstm, {name: dropped}, given)
