"""A classifier of images over any attention layer."""

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fwlight.checks import check_choice, check_sizes
from fwlight.mixers import TwoDirections
from fwlight.models.blocks import EncoderBlock
from fwlight.models.dropout import Dropout, follow_mixers
from fwlight.models.positions import SinusoidalPositions
from fwlight.models.stack import MixerFactory, Stack, pattern

POSITIONS = ("sinusoidal", "none")
POOLS = ("mean", "token")
DIRECTIONS = ("all", "two")


class VisionTransformer(nn.Module):
    """Patches as tokens, N blocks in which all see all, a linear read-out.

    (Dosovitskiy et al. 2021, arXiv 2010.11929; with the fixed positions in two dimensions and the
    mean over tokens of Beyer et al. 2022, arXiv 2205.01580.) Pixels in [0, 1] are taken to [-1, 1].

    Args:
        n_classes: Number of classes.
        shape: Channels, height and width of an image.
        patch_size: Side of a patch; must divide height and width.
        d_model: Width; with positions a multiple of 4.
        n_layers: Number of blocks.
        n_heads: Heads per block.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layers.
        dropout: Dropout probability.
        attention: Makes the mixer of a layer from (d_model, n_heads, d_head).
        alternate: Makes that of every `alternate_every`-th layer instead, for hybrids.
        alternate_every: See `fwlight.models.stack.pattern`.
        positions: "sinusoidal", of a patch's row in the first half of the width and of its column
            in the second, or "none".
        norm: "post" or "pre".
        feed_forward: "relu", "gelu" or "swiglu".
        pool: What is read out: the "mean" over all tokens, or a class "token" before them.
        directions: "all" writes all patches into a memory, from top left to bottom right, before
            any reads it; "two" runs causally from both ends, see `TwoDirections`.

    Raises:
        ValueError: If a size does not fit or an option is unknown.
    """

    def __init__(
        self,
        *,
        n_classes: int,
        shape: tuple[int, int, int],
        patch_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        attention: MixerFactory,
        alternate: MixerFactory | None = None,
        alternate_every: int = 4,
        positions: str = "sinusoidal",
        norm: str = "post",
        feed_forward: str = "relu",
        pool: str = "mean",
        directions: str = "all",
    ) -> None:
        super().__init__()
        check_sizes(n_classes=n_classes, patch_size=patch_size, n_layers=n_layers, d_ff=d_ff)
        check_choice("positions", positions, POSITIONS)
        check_choice("pool", pool, POOLS)
        check_choice("directions", directions, DIRECTIONS)
        channels, height, width = shape
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not divide the images' {height} x {width} pixels"
            )
        if positions != "none" and d_model % 4:
            raise ValueError(f"d_model={d_model} must be a multiple of 4 for sinusoidal positions")
        self.grid = (height // patch_size, width // patch_size)
        self.patches = nn.Conv2d(channels, d_model, patch_size, patch_size)
        self.positions = SinusoidalPositions(d_model // 2) if positions != "none" else None
        self.class_token = nn.Parameter(0.02 * torch.randn(d_model)) if pool == "token" else None
        self.dropout = Dropout(dropout)
        block = partial(
            EncoderBlock,
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_ff=d_ff,
            dropout=dropout,
            norm=norm,
            feed_forward=feed_forward,
        )
        mixers = pattern(attention, alternate, alternate_every, n_layers=n_layers)
        if directions == "two":
            mixers = [partial(TwoDirections, mixer=mixer) for mixer in mixers]
        self.blocks = Stack(block, mixers, n_layers=n_layers)
        if directions == "all":
            _check_writes(self.blocks)
        normed = norm == "pre" and not all(block.bare for block in self.blocks.blocks())
        self.final_norm = nn.LayerNorm(d_model) if normed else nn.Identity()
        self.output = nn.Linear(d_model, n_classes)
        follow_mixers(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        """Return the logits of the classes, given pixels in [0, 1]."""
        h = self.patches(2 * images - 1).flatten(2).transpose(1, 2)
        if self.positions is not None:
            h = h + self._places(h.device).to(h)
        if self.class_token is not None:
            first = self.class_token.to(h.dtype).expand(len(h), 1, -1)
            h = torch.cat([first, h], dim=1)
        h = self.dropout(h)
        for block in self.blocks.blocks():
            h = block(h)
        h = self.final_norm(h)
        return self.output(h.mean(1) if self.class_token is None else h[:, 0])

    def _places(self, device: torch.device) -> Tensor:
        """Return what is added to each patch `[t, m]`."""
        encode = cast(Any, self.positions)
        rows, columns = (encode(n, device=device) for n in self.grid)
        rows = rows[:, None].expand(-1, len(columns), -1)
        return torch.cat([rows, columns.expand_as(rows)], dim=-1).flatten(0, 1)


def _check_writes(blocks: Stack) -> None:
    """Raise ValueError for a mixer that cannot be written whole before it is read."""
    for block in blocks.blocks():
        if not hasattr(block.attention, "write"):
            raise ValueError(
                f"{type(block.attention).__name__} sees no later patches; model.directions=two "
                "lets it run from both ends"
            )
