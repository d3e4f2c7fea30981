"""Projections and heads around a memory, the same for every kind of memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.mixers.base import Mixer
from fwlight.mixers.short_conv import ShortConv


class ConvState(NamedTuple):
    """What a layer with a short convolution carries."""

    memory: Any
    """The memory's state."""
    tail: Float[Tensor, "b w n"]
    """The last projected [q; k; v] before the convolution; q is 0 where nothing but `write` was."""


class MultiHeadAttention(Mixer):
    """Project to heads, let a memory write and read, and project back; no biases.

    One matrix product makes q, k, v and, where the memory has a write strength, its logits: rows
    of `in_proj` are [q of all heads; k; v; beta], and beta = beta_max * sigmoid(logit) is one
    number per head and position (Schlag et al. 2021b, sec. 4.2). With a `FastWeights` this is
    linear attention, and its state has a constant size; with a `KeyValues` it is softmax
    attention.

    With `short_conv`, [q; k; v] of all heads pass a causal depthwise convolution first, and v a
    SiLU after it; on q and k the memory's feature map is what follows (DeltaNet, Yang et al. 2024,
    arXiv 2406.06484, which is that with SiLU for a feature map). beta is not convolved, and neither
    are queries of another sequence than the keys' (`source`, `read`): they stand alone, in any
    order.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head's q, k and v.
        memory: Makes the memory from `d_head`.
        beta_max: Largest write strength: 1, or 2 to allow negative eigenvalues of the state's
            transition (Grazzi et al. 2025).
        short_conv: Width of the convolution on q, k and v, at least 2; 0 is none.

    Raises:
        ValueError: If a size is below 1, `beta_max` is not positive or `short_conv` negative or 1.
    """

    memory: Any  # with the interface of `FastWeights`

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        memory: Callable[[int], nn.Module],
        beta_max: float = 1.0,
        short_conv: int = 0,
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
        self.short_conv = ShortConv(3 * n_heads * d_head, short_conv) if short_conv else None

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
        if source is not None:
            state = self.write(source, padding_mask=padding_mask, initial_state=initial_state)
            return self.read(x, state), state
        memory_state, tail = self._unpack(initial_state)
        (q, k, v, beta), tail = self._project(x, padding_mask=padding_mask, tail=tail)
        options = {"initial_state": memory_state, "padding_mask": padding_mask}
        if causal:
            o, memory_state = self.memory(q, k, v, beta, **options)
        else:
            memory_state = self.memory.write(k, v, beta, **options)
            o = self.memory.read(q, memory_state)
        return self._merge(o), self._pack(memory_state, tail)

    def write(
        self,
        source: Float[Tensor, "b s m"],
        *,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        initial_state: Any = None,
    ) -> Any:
        """Write every position of `source` and return the state; arguments as in `forward`."""
        memory_state, tail = self._unpack(initial_state)
        (_, k, v, beta), tail = self._project(
            source, queries=False, padding_mask=padding_mask, tail=tail
        )
        memory_state = self.memory.write(
            k, v, beta, initial_state=memory_state, padding_mask=padding_mask
        )
        return self._pack(memory_state, tail)

    def read(self, x: Float[Tensor, "b t m"], state: Any) -> Float[Tensor, "b t m"]:
        """Read what was written with the queries of `x`, each on its own."""
        q = F.linear(x, self.in_proj.weight[: self.n_heads * self.d_head])
        return self._merge(self.memory.read(self._heads(q), self._unpack(state)[0]))

    @property
    def state_size(self) -> int | None:
        """How many numbers are carried for one sequence; None if they grow with its length."""
        size, conv = self.memory.state_size, self.short_conv
        if size is None:
            return None
        return self.n_heads * size + (0 if conv is None else (conv.width - 1) * conv.channels)

    def empty_state(self, like: Float[Tensor, "b t m"]) -> Any:
        """Return the state of sequences that have shown nothing yet; see `Mixer`."""
        memory_state = self.memory.empty_state(like, n_heads=self.n_heads)
        if self.short_conv is None:
            return memory_state
        return ConvState(memory_state, self.short_conv.empty_tail(like))

    def _unpack(self, state: Any) -> tuple[Any, Tensor | None]:
        """Return the memory's state and the convolution's tail; None where there is none."""
        return (state, None) if state is None or self.short_conv is None else state

    def _pack(self, memory_state: Any, tail: Tensor | None) -> Any:
        return memory_state if tail is None else ConvState(memory_state, tail)

    def _project(
        self,
        x: Tensor,
        *,
        queries: bool = True,
        padding_mask: Tensor | None,
        tail: Tensor | None,
    ) -> tuple[tuple[Tensor | None, Tensor, Tensor, Tensor | None], Tensor | None]:
        """Return q, k, v by heads and beta, and the convolution's new tail."""
        width = self.n_heads * self.d_head
        weight = self.in_proj.weight if queries else self.in_proj.weight[width:]
        qkv, logits = F.linear(x, weight).split(
            [width * (2 + queries), self.n_heads * self.has_beta], dim=-1
        )
        if self.short_conv is not None:
            qkv, tail = self.short_conv(qkv, tail=tail, padding_mask=padding_mask)
        *qk, v = qkv.split(width, dim=-1)
        if self.short_conv is not None:
            v = F.silu(v)
        q = self._heads(qk[0]) if queries else None
        k, v = self._heads(qk[-1]), self._heads(v)
        if not self.has_beta:
            return (q, k, v, None), tail
        # In float32: near 1 bfloat16 has steps of 0.004.
        logits = logits.to(torch.promote_types(x.dtype, torch.float32))
        return (q, k, v, self.beta_max * logits.sigmoid().transpose(1, 2)), tail

    def _heads(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return x.view(b, t, self.n_heads, self.d_head).transpose(1, 2)

    def _merge(self, o: Tensor) -> Tensor:
        b, _, t, _ = o.shape
        return self.out_proj(o.transpose(1, 2).reshape(b, t, self.n_heads * self.d_head))

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"n_heads={self.n_heads}, d_head={self.d_head}, beta_max={self.beta_max}"
