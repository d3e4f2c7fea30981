"""Decays: gates that make a memory forget, before every write.

What they emit is the logarithm of a factor on what is stored, at most 0.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.mixers.gates import Gate, by_heads


class FixedDecay(Gate):
    """log(1 - 2^(-5 - h)) in head h = 0, 1, ..., for every token (RetNet, Sun et al. 2023)."""

    emits = ("decay",)
    per_write = False

    def __init__(self, *, n_heads: int, d_key: int, d_value: int) -> None:
        super().__init__()
        self.rows, self.n_heads = 0, n_heads

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the decay `[b, h, t]`."""
        b, t, _ = logits.shape
        heads = torch.arange(self.n_heads, dtype=logits.dtype, device=logits.device)
        decay = torch.log1p(-torch.exp2(-5.0 - heads))
        return {"decay": decay[None, :, None].expand(b, -1, t)}


class TimeStep(Gate):
    """dt = softplus(logit + dt_bias), -exp(A_log) dt the decay, and dt the write strength.

    One number a head: Mamba-2 (Dao and Gu 2024) in its simple form. A starts uniform in `a_range`,
    dt log-uniform from 0.001 to 0.1.

    Args:
        n_heads: Number of heads.
        d_key: Not used.
        d_value: Not used.
        a_range: Smallest and largest first value of A.
    """

    emits: tuple[str, ...] = ("decay", "beta")
    per_write = False

    def __init__(
        self,
        *,
        n_heads: int,
        d_key: int,
        d_value: int,
        a_range: Sequence[float] = (1.0, 16.0),
    ) -> None:
        super().__init__()
        self.rows = n_heads
        self.A_log = nn.Parameter(_log_uniform_a(n_heads, a_range))
        self.dt_bias = nn.Parameter(_dt_bias(n_heads))

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return decay and beta `[b, h, t]`."""
        dt = F.softplus(logits + self.dt_bias).transpose(1, 2)
        return {"decay": -self.A_log.exp()[:, None] * dt, "beta": dt}


class ScalarDecay(TimeStep):
    """-exp(A_log) softplus(logit + dt_bias), one a head (Gated DeltaNet, Yang et al. 2024)."""

    emits = ("decay",)

    def __init__(
        self,
        *,
        n_heads: int,
        d_key: int,
        d_value: int,
        a_range: Sequence[float] = (0.01, 16.0),
    ) -> None:
        super().__init__(n_heads=n_heads, d_key=d_key, d_value=d_value, a_range=a_range)

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the decay `[b, h, t]`."""
        return {"decay": super().forward(logits)["decay"]}


class ChannelDecay(Gate):
    """-exp(A_log[h]) softplus(f(x) + dt_bias), one a key channel (KDA, Kimi Linear 2025).

    f goes through `rank` numbers; its second map has no bias.

    Args:
        n_heads: Number of heads.
        d_key: Size of a key.
        d_value: Not used.
        rank: Numbers that f goes through; None is `d_key`.
        a_range: Smallest and largest first value of A, one a head.
    """

    emits = ("decay",)
    per_write = False

    def __init__(
        self,
        *,
        n_heads: int,
        d_key: int,
        d_value: int,
        rank: int | None = None,
        a_range: Sequence[float] = (1.0, 16.0),
    ) -> None:
        super().__init__()
        self.rows = d_key if rank is None else rank
        check_sizes(rank=self.rows)
        self.n_heads = n_heads
        self.up = nn.Linear(self.rows, n_heads * d_key, bias=False)
        self.A_log = nn.Parameter(_log_uniform_a(n_heads, a_range))
        # Flat: what has one dimension does not decay under weight decay.
        self.dt_bias = nn.Parameter(_dt_bias(n_heads * d_key))

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the decay `[b, h, t, k]`."""
        dt = F.softplus(self.up(logits) + self.dt_bias)
        return {"decay": -self.A_log.exp()[:, None, None] * by_heads(dt, self.n_heads)}


class LogSigmoidDecay(Gate):
    """logsigmoid(f(x)) / divisor, one a key channel (GLA, Yang et al. 2024).

    Args:
        n_heads: Number of heads.
        d_key: Size of a key.
        d_value: Not used.
        rank: Numbers that f goes through; its second map has a bias.
        divisor: The larger, the closer the decay starts to none.
    """

    emits = ("decay",)
    per_write = False

    def __init__(
        self, *, n_heads: int, d_key: int, d_value: int, rank: int = 16, divisor: float = 16.0
    ) -> None:
        super().__init__()
        check_sizes(rank=rank)
        self.rows, self.n_heads, self.divisor = rank, n_heads, divisor
        self.up = nn.Linear(rank, n_heads * d_key)

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the decay `[b, h, t, k]`."""
        return {"decay": by_heads(F.logsigmoid(self.up(logits)) / self.divisor, self.n_heads)}


def _log_uniform_a(n: int, a_range: Sequence[float]) -> Tensor:
    """Return the logarithms of n draws of A, uniform in `a_range`."""
    if len(a_range) != 2 or not 0 < a_range[0] <= a_range[1]:
        raise ValueError(f"a_range={list(a_range)} must be two positive numbers, the smaller first")
    low, high = a_range
    return torch.empty(n).uniform_(low, high).log()


def _dt_bias(n: int) -> Tensor:
    """Return what softplus turns into n draws of dt, log-uniform from 0.001 to 0.1."""
    dt = torch.empty(n).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
