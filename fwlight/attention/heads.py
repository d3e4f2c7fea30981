"""Projections and heads around a memory, the same for every kind of memory."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_sizes


class MultiHeadAttention(nn.Module):
    """Project to heads, let a memory write and read, and project back; no biases.

    One matrix product makes q, k, v and, where the memory has a write strength, its logits: rows
    of `in_proj` are [q of all heads; k; v; beta], and beta = beta_max * sigmoid(logit) is one
    number per head and position (Schlag et al. 2021b, sec. 4.2). With a `FastWeightMemory` this is
    linear attention, and its state has a constant size; with a `KeyValueMemory` it is softmax
    attention.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head's q, k and v.
        memory: Makes the memory from `d_head`.
        beta_max: Largest write strength: 1, or 2 to allow negative eigenvalues of the state's
            transition (Grazzi et al. 2025).

    Raises:
        ValueError: If a size is below 1 or `beta_max` is not positive.
    """

    memory: Any  # with the interface of `FastWeightMemory`

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        memory: Callable[[int], nn.Module],
        beta_max: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, n_heads=n_heads, d_head=d_head)
        if beta_max <= 0:
            raise ValueError(f"beta_max={beta_max} must be positive")
        self.n_heads, self.d_head, self.beta_max = n_heads, d_head, beta_max
        self.memory = memory(d_head)
        self.has_beta = self.memory.has_beta
        self.in_proj = nn.Linear(d_model, n_heads * (3 * d_head + self.has_beta), bias=False)
        self.out_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        source: Float[Tensor, "b s m"] | None = None,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Attend from `x` to itself, or to `source`; return the output and the state.

        Args:
            x: Where queries come from.
            source: Where keys and values come from; None is `x` itself.
            causal: Read token by token, each after its own write; otherwise write everything
                first, then read with every query (encoder self-attention, cross-attention).
            padding_mask: True where a position of the keys' side is padding.
            initial_state: The state to continue from; None starts empty.

        Raises:
            ValueError: If attention to a `source` is asked to be causal.
        """
        if source is not None and causal:
            raise ValueError("attention to a source cannot be causal: pass causal=False")
        if causal:
            q, k, v, beta = self._project(x)
            o, state = self.memory(
                q, k, v, beta, initial_state=initial_state, padding_mask=padding_mask
            )
            return self._merge(o), state
        state = self.write(
            x if source is None else source, padding_mask=padding_mask, initial_state=initial_state
        )
        return self.read(x, state), state

    def write(
        self,
        source: Float[Tensor, "b s m"],
        *,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        initial_state: Any = None,
    ) -> Any:
        """Write every position of `source` and return the state; arguments as in `forward`."""
        _, k, v, beta = self._project(source, queries=False)
        return self.memory.write(k, v, beta, initial_state=initial_state, padding_mask=padding_mask)

    def read(self, x: Float[Tensor, "b t m"], state: Any) -> Float[Tensor, "b t m"]:
        """Read what was written with the queries of `x`."""
        q = F.linear(x, self.in_proj.weight[: self.n_heads * self.d_head])
        return self._merge(self.memory.read(self._heads(q), state))

    @property
    def state_size(self) -> int | None:
        """How many numbers are carried for one sequence; None if they grow with its length."""
        size = self.memory.state_size
        return None if size is None else self.n_heads * size

    def _project(
        self, x: Tensor, *, queries: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        width = self.n_heads * self.d_head
        weight = self.in_proj.weight if queries else self.in_proj.weight[width:]
        sizes = [width] * (2 + queries) + [self.n_heads] * self.has_beta
        parts = list(F.linear(x, weight).split(sizes, dim=-1))
        q = self._heads(parts.pop(0)) if queries else None
        k, v = self._heads(parts[0]), self._heads(parts[1])
        if not self.has_beta:
            return q, k, v, None
        # In float32: near 1 bfloat16 has steps of 0.004.
        logits = parts[2].to(torch.promote_types(x.dtype, torch.float32))
        return q, k, v, self.beta_max * logits.sigmoid().transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return x.view(b, t, self.n_heads, self.d_head).transpose(1, 2)

    def _merge(self, o: Tensor) -> Tensor:
        b, _, t, _ = o.shape
        return self.out_proj(o.transpose(1, 2).reshape(b, t, self.n_heads * self.d_head))

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"n_heads={self.n_heads}, d_head={self.d_head}, beta_max={self.beta_max}"
