"""What recurrent fast weight programmers share: projections and heads around a core."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.autocast import without_autocast
from fwlight.checks import check_sizes
from fwlight.mixers.base import Mixer
from fwlight.mixers.fast_weights import FastWeights
from fwlight.mixers.heads import ConvState
from fwlight.mixers.normalisation import at_least_float32
from fwlight.mixers.short_conv import ShortConv

Mask = Bool[Tensor, "b t"] | None


class RecurrentMixer(Mixer):
    """Project to the vectors of every head, run a core over time, and project back.

    Rows of `in_proj` are those of the vectors, one after the other, each of all heads, then those
    of the write strengths. With `short_conv`, the vectors pass a causal depthwise convolution.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads.
        d_head: Size of a head's output.
        vectors: Names and sizes of what a head is given.
        strengths: Numbers a token that are asked for beside them, over all heads.
        short_conv: Width of the convolution, at least 2; 0 is none.
        output_scale: Factor on what heads return; None is d_head^(-1/2), as in the language models
            of Irie et al. 2021, whose algorithmic tasks have none.

    Raises:
        ValueError: If a size is below 1, or `short_conv` negative or 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        *,
        vectors: Mapping[str, int],
        strengths: int,
        short_conv: int = 0,
        output_scale: float | None = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, n_heads=n_heads, d_head=d_head)
        self.n_heads, self.d_head = n_heads, d_head
        self.vectors, self.strengths = dict(vectors), strengths
        self.output_scale = d_head**-0.5 if output_scale is None else output_scale
        channels = n_heads * sum(vectors.values())
        self.in_proj = nn.Linear(d_model, channels + strengths, bias=False)
        self.out_proj = nn.Linear(n_heads * d_head, d_model, bias=False)
        self.short_conv = ShortConv(channels, short_conv) if short_conv else None

    @abstractmethod
    def core(
        self,
        given: dict[str, Tensor],
        logits: Float[Tensor, "b t n"],
        state: Any,
        *,
        starts: Mask,
        padding_mask: Mask,
    ) -> tuple[Float[Tensor, "b h t d"], Any]:
        """Return what every head gives at every token, and the state after.

        Args:
            given: The vectors `[b, h, t, size]` by name, in float32 at least.
            logits: What is asked for write strengths, over all heads.
            state: To continue from.
            starts: See `Mixer`.
            padding_mask: See `Mixer`.
        """

    @abstractmethod
    def empty_core(self, like: Float[Tensor, "b t m"]) -> Any:
        """Return the state of a core before the first token; see `Mixer.empty_state`."""

    @property
    def memories(self) -> dict[str, FastWeights]:
        """What can be watched of a core, by name; its first memory has none."""
        return {}

    @property
    @abstractmethod
    def core_size(self) -> int:
        """How many numbers a core carries for one sequence, over all heads."""

    @property
    def state_size(self) -> int:
        """How many numbers are carried for one sequence."""
        conv = self.short_conv
        return self.core_size + (0 if conv is None else (conv.width - 1) * conv.channels)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        causal: bool = True,
        padding_mask: Mask = None,
        starts: Mask = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Run over time; see `Mixer`.

        Raises:
            ValueError: If it is not to be causal: a core sees no later tokens.
        """
        if not causal:
            raise ValueError(
                f"{type(self).__name__} sees no later tokens: no encoder and no cross-attention"
            )
        state = self.empty_state(x) if initial_state is None else initial_state
        if x.shape[1] == 0:
            return self.out_proj(x.new_zeros(len(x), 0, self.out_proj.in_features)), state
        core, tail = state if self.short_conv is not None else (state, None)
        vectors, logits = self.in_proj(x).tensor_split([-self.strengths], -1)
        if not self.strengths:
            vectors, logits = logits, vectors
        if self.short_conv is not None:
            vectors, tail = self.short_conv(
                vectors,
                tail=tail,
                padding_mask=padding_mask,
                starts=starts,
                allow_native=self.allow_native,
            )
        with without_autocast(x):
            sizes = [self.n_heads * size for size in self.vectors.values()]
            given = {
                name: at_least_float32(part).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                for name, part in zip(self.vectors, vectors.split(sizes, -1), strict=True)
            }
            masks = {"starts": starts, "padding_mask": padding_mask}
            o, core = self.core(given, at_least_float32(logits), core, **masks)
            o = o.transpose(1, 2).flatten(2) * self.output_scale
        y = self.out_proj(o.to(self.in_proj.weight.dtype))
        return y, core if tail is None else ConvState(core, tail)

    def empty_state(self, like: Float[Tensor, "b t m"]) -> Any:
        """Return the state of sequences that have shown nothing yet; see `Mixer`."""
        core = self.empty_core(like)
        return (
            core if self.short_conv is None else ConvState(core, self.short_conv.empty_tail(like))
        )

    def zeros(self, like: Tensor, *shape: int) -> Tensor:
        """Return zeros `[b, *shape]` in the format of states."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(len(like), *shape, dtype=dtype)

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"n_heads={self.n_heads}, d_head={self.d_head}"


def outputs_before(
    o: Float[Tensor, "b h t d"], first: Float[Tensor, "b h d"], starts: Mask
) -> Float[Tensor, "b h t d"]:
    """Return what a core said last before every token: `first`, or where one begins nothing."""
    before = torch.cat([first[:, :, None], o[:, :, :-1]], dim=2)
    return before if starts is None else before.masked_fill(starts[:, None, :, None], 0.0)
