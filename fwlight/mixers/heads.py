"""Projections and heads around a memory, the same for every kind of memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_choice, check_factory, check_sizes
from fwlight.mixers.base import Mixer
from fwlight.mixers.gates import Gates
from fwlight.mixers.normalisation import RMSNorm
from fwlight.mixers.rotary import rotated
from fwlight.mixers.short_conv import ShortConv
from fwlight.packing import Pieces

OUT_GATES = ("none", "silu", "sigmoid")
QK_NORMS = ("none", "rmsnorm")


class ConvState(NamedTuple):
    """What a layer with a short convolution carries."""

    memory: Any
    """The memory's state."""
    tail: Float[Tensor, "b w n"]
    """The last projected [q; k; v] before the convolution; q is 0 where nothing but `write` was."""


class MultiHeadAttention(Mixer):
    """Project to heads, let a memory write and read, and project back.

    One matrix product makes q, k, v and what the memory's gates ask for: rows of `in_proj` are
    [q of all heads; k; v; gates; output gate]. With a `FastWeights` this is linear attention, and
    its state has a constant size; with `KeyValues` it is softmax attention.

    With `short_conv`, [q; k; v] of all heads pass a causal depthwise convolution first, and v a
    SiLU after it; on q and k the memory's feature map is what follows (DeltaNet, Yang et al. 2024,
    arXiv 2406.06484, which is that with SiLU for a feature map). Gates are not convolved, and
    neither are queries of another sequence than the keys' (`read`): they stand alone, in any order.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads of q and k.
        d_head: Size of a head's q and k.
        memory: Makes the memory from d_head and the keywords d_value and n_heads.
        expand_v: Size of a head's values over `d_head`.
        value_heads_per_key: Value heads, each with a memory and gates of its own, that share one
            head of q and k; all of them together are n_heads times this many.
        positions: "rotary" turns q and k of self-attention by their positions; anything else does
            nothing, nor does the attention to another sequence (`write`, `read`).
        qk_norm: "rmsnorm" normalises every head's q and k, with a gain of each that all heads share
            (Henry et al. 2020; Dehghani et al. 2023), before they are turned; or "none".
        short_conv: Width of the convolution on q, k and v, at least 2; 0 is none.
        out_gate: "silu" or "sigmoid" multiplies what the memory returns, after its `out_norm`, by
            that of a further projection (Gated DeltaNet, KDA); "none" does not.
        out_gate_rank: Numbers that this projection goes through; 0 is a full matrix.
        out_gate_bias: Whether its second map has a bias.

    Raises:
        ValueError: If a size is below 1, `short_conv` negative or 1, an option unknown, expand_v
            d_head is not a whole number, or positions are rotary and d_head is odd or the memory
            one that does not know how many tokens it holds.
    """

    memory: Any  # with the interface of `FastWeights`

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        memory: Callable[..., nn.Module],
        expand_v: int | float = 1,
        value_heads_per_key: int = 1,
        positions: str = "none",
        qk_norm: str = "none",
        short_conv: int = 0,
        out_gate: str = "none",
        out_gate_rank: int = 0,
        out_gate_bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_heads": n_heads, "d_head": d_head}
        check_sizes(**sizes, value_heads_per_key=value_heads_per_key)
        check_choice("out_gate", out_gate, OUT_GATES)
        check_choice("qk_norm", qk_norm, QK_NORMS)
        check_factory(memory=memory)
        self.d_head, self.d_value = d_head, (d_value := round(expand_v * d_head))
        if d_value < 1 or abs(expand_v * d_head - d_value) > 1e-6:
            raise ValueError(f"expand_v={expand_v:g} times d_head={d_head} is not a whole number")
        self.key_heads, self.n_heads = n_heads, n_heads * value_heads_per_key
        self.memory = memory(d_head, d_value=d_value, n_heads=self.n_heads)
        self.allow_native = self.memory.allow_native
        self.rotary = positions == "rotary"
        if self.rotary and (self.memory.state_size is not None or d_head % 2):
            raise ValueError(
                f"positions=rotary is for softmax attention with an even d_head, not {d_head}"
            )
        normed = qk_norm == "rmsnorm"
        self.q_norm, self.k_norm = (
            RMSNorm(d_head, eps=1e-5, allow_native=self.allow_native) if normed else nn.Identity()
            for _ in range(2)
        )
        self.out_gate, gated = out_gate, out_gate != "none"
        width, writes = self.n_heads * d_value, self.memory.writes
        keys, values = n_heads * d_head * writes, width * writes
        self.rows = {"q": n_heads * d_head, "k": keys, "v": values}
        self.rows |= {"gates": self.memory.gates.rows, "out": (out_gate_rank or width) * gated}
        self.in_proj = nn.Linear(d_model, sum(self.rows.values()), bias=False)
        self.out_proj = nn.Linear(width, d_model, bias=False)
        channels = n_heads * d_head + keys + values
        self.short_conv = ShortConv(channels, short_conv) if short_conv else None
        self.out_gate_up = (
            nn.Linear(out_gate_rank, width, bias=out_gate_bias) if gated and out_gate_rank else None
        )

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Let every position see those before it and itself, or all; return also the state.

        Not causal, everything is written first and then read with every query; of several
        sequences in a row each is a sequence of the state that is returned. Arguments as of
        `Mixer`.

        Raises:
            ValueError: If there are starts and padding, or, not causal, starts and a state.
        """
        memory_state, tail = self._unpack(initial_state)
        masks: dict[str, Any] = {"padding_mask": padding_mask, "starts": starts}
        (q, k, v, gates), out, tail = self._project(x, tail=tail, **masks)
        if self.rotary:
            assert q is not None  # they were asked for
            first = 0 if memory_state is None else memory_state.k.shape[2]
            q, k = rotated(q, k, first=first, allow_native=self.allow_native)
        options = {"initial_state": memory_state, "padding_mask": padding_mask}
        if causal:
            o, memory_state = self.memory(q, k, v, gates, starts=starts, **options)
        elif starts is None:
            memory_state = self.memory.write(k, v, gates, **options)
            o = self.memory.read(q, memory_state)
        else:
            memory_state = self._write_apart(k, v, gates, starts, **options)
            assert q is not None  # they were asked for
            o = self._read_apart(q, memory_state, starts)
        return self._merge(o, out), self._pack(memory_state, tail)

    def write(
        self,
        source: Float[Tensor, "b s m"],
        *,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        starts: Bool[Tensor, "b s"] | None = None,
        initial_state: Any = None,
    ) -> Any:
        """Write every position of `source` and return the state; arguments as in `forward`.

        Of several sequences in a row each leaves a state of its own.
        """
        memory_state, tail = self._unpack(initial_state)
        masks: dict[str, Any] = {"padding_mask": padding_mask, "starts": starts}
        (_, k, v, gates), _, tail = self._project(source, queries=False, tail=tail, **masks)
        options = {"initial_state": memory_state, "padding_mask": padding_mask}
        if starts is None:
            memory_state = self.memory.write(k, v, gates, **options)
        else:
            memory_state = self._write_apart(k, v, gates, starts, **options)
        return self._pack(memory_state, tail)

    def read(
        self,
        x: Float[Tensor, "b t m"],
        state: Any,
        *,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        """Read what was written with the queries of `x`, each on its own.

        With starts the sequences of `x`, row after row, read those that were written, in their
        order.
        """
        weight, out = self.in_proj.weight, self.rows["out"]
        q = F.linear(x, weight[: self.rows["q"]])
        gate = F.linear(x, weight[len(weight) - out :]) if out else None
        q, memory_state = self.q_norm(self._key_heads(q, 1)), self._unpack(state)[0]
        if starts is None:
            return self._merge(self.memory.read(q, memory_state), gate)
        return self._merge(self._read_apart(q, memory_state, starts), gate)

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
        starts: Tensor | None = None,
        tail: Tensor | None,
    ) -> tuple[tuple[Tensor | None, Tensor, Tensor, Gates], Tensor | None, Tensor | None]:
        """Return q, k, v by heads and the gates, the output gate, and the convolution's tail."""
        rows = self.rows
        weight, asked = self.in_proj.weight, rows["q"]
        if not queries:  # and no output gate: nothing is read
            weight, asked = weight[asked : len(weight) - rows["out"]], 0
        widths = [asked, rows["k"], rows["v"]]
        others = [rows["gates"], rows["out"] * queries]
        projected = F.linear(x, weight)
        if self.short_conv is None:  # one split: the gradient of every other is copied once more
            q, k, v, logits, out = projected.split([*widths, *others], dim=-1)
        else:
            qkv, logits, out = projected.split([sum(widths), *others], dim=-1)
            masks = {"padding_mask": padding_mask, "starts": starts}
            qkv, tail = self.short_conv(qkv, tail=tail, allow_native=self.allow_native, **masks)
            q, k, v = qkv.split(widths, dim=-1)
            v = F.silu(v)
        writes = self.memory.writes
        q = self.q_norm(self._key_heads(q, 1)) if queries else None
        k = self.k_norm(self._key_heads(k, writes))
        programmed = q, k, _heads(v, writes, self.n_heads), self.memory.gates(logits)
        return programmed, out if rows["out"] else None, tail

    def _write_apart(
        self,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        starts: Tensor,
        *,
        initial_state: Any,
        padding_mask: Tensor | None,
    ) -> Any:
        """Write every sequence of the rows into a memory of its own."""
        if initial_state is not None or padding_mask is not None:
            raise ValueError("rows of several sequences have no padding and begin with nothing")
        writes = self.memory.writes
        pieces = Pieces(F.pad(starts[..., None], (0, writes - 1)).flatten(1))
        gates = Gates(*(None if x is None else pieces.lay_out(x) for x in gates))
        k, v = pieces.lay_out(k), pieces.lay_out(v)
        return self.memory.write(k, v, gates, padding_mask=pieces.padding_mask[:, ::writes])

    def _read_apart(self, q: Tensor, memory_state: Any, starts: Tensor) -> Tensor:
        """Read the memory of every sequence with the queries of one."""
        pieces = Pieces(starts)
        return pieces.back(self.memory.read(pieces.lay_out(q), memory_state))

    def _key_heads(self, x: Tensor, writes: int) -> Tensor:
        """Return q or k by value heads."""
        x = _heads(x, writes, self.key_heads)
        shared = self.n_heads // self.key_heads
        return x if shared == 1 else x.repeat_interleave(shared, dim=1)

    def _merge(self, o: Tensor, gate: Tensor | None) -> Tensor:
        b, _, t, _ = o.shape
        o = o.transpose(1, 2).reshape(b, t, self.n_heads * self.d_value)
        if gate is not None:
            z = gate if self.out_gate_up is None else self.out_gate_up(gate)
            o = o * (F.silu(z) if self.out_gate == "silu" else z.sigmoid())
        return self.out_proj(o)

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"n_heads={self.n_heads}, d_head={self.d_head}, d_value={self.d_value}"


def _heads(x: Float[Tensor, "b t n"], writes: int, heads: int) -> Float[Tensor, "b h w d"]:
    """Cut rows into heads; of several writes a token, those of one token stand together."""
    b, t, n = x.shape
    if writes == 1:
        return x.view(b, t, heads, n // heads).transpose(1, 2)
    return x.unflatten(-1, (writes, heads, -1)).movedim(3, 1).flatten(2, 3)
