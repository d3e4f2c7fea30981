"""Delta LSTM: an LSTM whose gates are Delta RNNs."""

from typing import Any

from torch import Tensor

from fwlight.mixers.delta_rnn import DeltaRNN, RecurrentState
from fwlight.mixers.fast_weights import MemoryState
from fwlight.ops.recurrent_scans import delta_lstm_scan


class DeltaLSTM(DeltaRNN):
    """Delta RNNs as the gates of an LSTM (Irie et al. 2021, arXiv 2106.06295).

    Equations in `fwlight.ops.recurrent_scans`; arguments as of `DeltaRNN`, versions 1 to 4, of
    which 4 is the paper's. A head is given q, k, v, rk and rv for the gates i, u, o, in this order.
    """

    gates = 3
    versions = (1, 2, 3, 4)

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
        assert state.c is not None  # it is an LSTM's
        o, R, h, c = delta_lstm_scan(z, k, v, beta, state.R, state.h, state.c, **options)
        return o, RecurrentState(memory, R, h, c)
