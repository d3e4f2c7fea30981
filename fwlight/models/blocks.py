"""The transformer blocks around any attention layer."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_choice, check_factory
from fwlight.mixers.normalisation import RMSNorm
from fwlight.models.activations import Activation
from fwlight.models.dropout import Dropout

NORMS = ("post", "pre")
BLOCK_NORMS = ("layernorm", "rmsnorm")


class FeedForward(nn.Sequential):
    """Linear, an activation, dropout, linear, dropout (Vaswani et al. 2017, eq. 2).

    Args:
        d_model: Width.
        d_ff: Width between the two.
        dropout: Probability.
        kind: "relu", "gelu" or "swiglu", which is without biases.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float, *, kind: str = "relu") -> None:
        gated = kind == "swiglu"
        super().__init__(
            nn.Linear(d_model, 2 * d_ff if gated else d_ff, bias=not gated),
            Activation(kind),
            Dropout(dropout),
            nn.Linear(d_ff, d_model, bias=not gated),
            Dropout(dropout),
        )

    def forward(self, input: Float[Tensor, "... i"]) -> Float[Tensor, "... i"]:
        """Call one after the other; the activation adds the first one's bias, see there."""
        first, activation, *others = self
        x = cast(Activation, activation).after(first, input)
        for module in others:
            x = module(x)
        return x


def make_norm(kind: str, d_model: int) -> nn.Module:
    """Return one of `BLOCK_NORMS` (Ba et al. 2016; Zhang and Sennrich 2019); ValueError else."""
    check_choice("block_norm", kind, BLOCK_NORMS)
    return nn.LayerNorm(d_model) if kind == "layernorm" else RMSNorm(d_model, eps=1e-5)


class Block(nn.Module):
    """Self-attention and feed-forward layer, each with a residual connection; see subclasses.

    Around a mixer that is `bare` there is nothing.

    Args:
        d_model: Width.
        n_heads: Number of heads.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layer.
        dropout: Probability on the attention's output and in the feed-forward layer.
        attention: Makes the attention layer from (d_model, n_heads, d_head).
        norm: "post" normalises after each residual sum, as in the paper; "pre" before each
            sublayer.
        feed_forward: The kind of `FeedForward`.
        block_norm: What normalises, "layernorm" or "rmsnorm".

    Raises:
        ValueError: If `norm`, `feed_forward` or `block_norm` is unknown.
    """

    attention: Any  # as `fwlight.mixers.MultiHeadAttention`

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        attention: Callable[..., nn.Module],
        norm: str = "post",
        feed_forward: str = "relu",
        block_norm: str = "layernorm",
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        check_factory(attention=attention)
        self.norm = norm
        self.attention = attention(d_model=d_model, n_heads=n_heads, d_head=d_head)
        self.dropout = Dropout(dropout)
        self.bare = getattr(self.attention, "bare", False)
        if self.bare:
            return
        self.attention_norm = make_norm(block_norm, d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout, kind=feed_forward)
        self.feed_forward_norm = make_norm(block_norm, d_model)

    def attend(self, h: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Add the self-attention's output; return also its state."""
        if self.bare:
            return self.attention(h, **options)
        y, state = self.attention(self.before(h, self.attention_norm), **options)
        return self.after(h, self.dropout(y), self.attention_norm), state

    def feed(self, h: Tensor) -> Tensor:
        """Add the feed-forward layer's output."""
        if self.bare:
            return h
        y = self.feed_forward(self.before(h, self.feed_forward_norm))
        return self.after(h, y, self.feed_forward_norm)

    def scale_residuals(self, factor: float) -> None:
        """Multiply the weights of what is added to the residual stream."""
        if self.bare:
            return
        for module in (getattr(self.attention, "out_proj", None), self.feed_forward[3]):
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.mul_(factor)

    def before(self, h: Tensor, layer_norm: nn.Module) -> Tensor:
        """Return what a sublayer reads."""
        return layer_norm(h) if self.norm == "pre" else h

    def after(self, h: Tensor, y: Tensor, layer_norm: nn.Module) -> Tensor:
        """Return what a sublayer that made `y` leaves."""
        return h + y if self.norm == "pre" else layer_norm(h + y)


class DecoderBlock(Block):
    """Causal self-attention, then the feed-forward layer; arguments as of `Block`."""

    def forward(
        self,
        h: Float[Tensor, "b t i"],
        *,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Return the block's output and the attention's state; a bare mixer changes the width."""
        options = {} if starts is None else {"starts": starts}  # of which not all mixers know
        h, state = self.attend(h, padding_mask=padding_mask, initial_state=initial_state, **options)
        return self.feed(h), state


class EncoderBlock(Block):
    """Attention from every token to every token, then the feed-forward layer; as `Block`."""

    def forward(
        self,
        h: Float[Tensor, "b s m"],
        *,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        starts: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b s m"]:
        """Return the block's output; what it holds at padding is not to be read."""
        options = {} if starts is None else {"starts": starts}
        return self.feed(self.attend(h, causal=False, padding_mask=padding_mask, **options)[0])


class CrossDecoderBlock(Block):
    """Causal self-attention, attention to a source, and the feed-forward layer.

    `cross` makes the layer that the source is written to, from (d_model, n_heads, d_head); other
    arguments as of `Block`.
    """

    cross: Any  # as `fwlight.mixers.MultiHeadAttention`

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        attention: Callable[..., nn.Module],
        cross: Callable[..., nn.Module],
        norm: str = "post",
        feed_forward: str = "relu",
        block_norm: str = "layernorm",
    ) -> None:
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_ff=d_ff,
            dropout=dropout,
            attention=attention,
            norm=norm,
            feed_forward=feed_forward,
            block_norm=block_norm,
        )
        check_factory(cross=cross)
        self.cross = cross(d_model=d_model, n_heads=n_heads, d_head=d_head)
        self.cross_norm = make_norm(block_norm, d_model)

    def write(self, source: Float[Tensor, "b s m"], **masks: Bool[Tensor, "b s"] | None) -> Any:
        """Return what the cross-attention keeps of sources; see its `write`."""
        return self.cross.write(source, **masks)

    def forward(
        self,
        h: Float[Tensor, "b t m"],
        *,
        written: Any,
        sources: int,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Return the block's output and the self-attention's state.

        Args:
            h: Rows of one source stand together: every source has b / sources of them.
            written: What `write` made of the sources.
            sources: How many they are.
            starts: True where a row goes on with the next source.
            initial_state: Of the self-attention.
        """
        options = {} if starts is None else {"starts": starts}
        h, state = self.attend(h, initial_state=initial_state, **options)
        x = self.before(h, self.cross_norm)
        if starts is None:
            # Every query reads on its own: those of all rows of a source are one long row.
            x = x.reshape(sources, -1, h.shape[-1])
        y = self.cross.read(x, written, **options).reshape(h.shape)
        return self.feed(self.after(h, self.dropout(y), self.cross_norm)), state
