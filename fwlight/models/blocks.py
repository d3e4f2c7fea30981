"""The transformer block around any attention layer."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_choice

NORMS = ("post", "pre")


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear, dropout (Vaswani et al. 2017, eq. 2)."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(d_model, d_ff),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(d_ff, d_model),
            nn.Dropout(dropout),
        )


class DecoderBlock(nn.Module):
    """Causal self-attention, then the feed-forward layer, each with a residual connection.

    Args:
        d_model: Width.
        n_heads: Number of heads.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layer.
        dropout: Probability on the attention's output and in the feed-forward layer.
        attention: Makes the attention layer from (d_model, n_heads, d_head).
        norm: "post" normalises after each residual sum, as in the paper; "pre" before each
            sublayer.

    Raises:
        ValueError: If `norm` is unknown.
    """

    attention: Any  # as `fwlight.attention.MultiHeadAttention`

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
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        self.norm = norm
        self.attention = attention(d_model=d_model, n_heads=n_heads, d_head=d_head)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        h: Float[Tensor, "b t m"],
        *,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Return the block's output and the attention's state."""
        if self.norm == "pre":
            y, state = self.attention(
                self.attention_norm(h), padding_mask=padding_mask, initial_state=initial_state
            )
            h = h + self.dropout(y)
            return h + self.feed_forward(self.feed_forward_norm(h)), state
        y, state = self.attention(h, padding_mask=padding_mask, initial_state=initial_state)
        h = self.attention_norm(h + self.dropout(y))
        return self.feed_forward_norm(h + self.feed_forward(h)), state
