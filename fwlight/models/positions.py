"""Fixed sinusoidal positions, added to embeddings."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_choice
from fwlight.packing import ends_of
from fwlight.tables import kept

POSITIONS = ("sinusoidal", "sinusoidal_reversed", "rotary", "none")


class SinusoidalPositions(nn.Module):
    """Position p becomes [sin(p f_i) | cos(p f_i)], f_i = 10000^(-2i / d_model).

    (Vaswani et al. 2017, sec. 3.5, in the layout of Transformer-XL.)

    Args:
        d_model: Width; must be even.
        reverse: Count down to 0 at the last position of a segment, as the language model of the
            reference code does, instead of up from 0.

    Raises:
        ValueError: If `d_model` is odd.
    """

    def __init__(self, d_model: int, *, reverse: bool = False) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model={d_model} must be even for sinusoidal positions")
        self.d_model, self.reverse = d_model, reverse

    def forward(
        self,
        length: int,
        start: int = 0,
        *,
        starts: Bool[Tensor, "b t"] | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, "*b t m"]:
        """Return the encodings of positions start, ..., start + length - 1, in float64.

        Args:
            length: Positions of a segment.
            start: How many there were before it.
            starts: True where they begin again from 0, in rows `[b, t]` of their own.
            device: Where to.

        Raises:
            ValueError: If positions count down and `start` is not 0: every token of the earlier
                segments would have to move.
        """
        if self.reverse and start:
            raise ValueError("positions=sinusoidal_reversed cannot continue an earlier segment")
        if starts is None:
            return _segment(start, length, self.d_model, self.reverse, device)
        positions = torch.arange(start, start + length, device=device)
        first, last = ends_of(starts)
        return _encodings(last - positions if self.reverse else positions - first, self.d_model)


@kept
def _segment(
    start: int, length: int, d_model: int, reverse: bool, device: torch.device | None
) -> Tensor:
    positions = torch.arange(start, start + length, device=device)
    return _encodings(positions.flip(0) if reverse else positions, d_model)


def _encodings(positions: Tensor, d_model: int) -> Tensor:
    # No buffer, which a model that is built on the meta device would lose.
    exponents = torch.arange(0, d_model, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None] * 10000.0 ** -(exponents / d_model)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def make_positions(positions: str, d_model: int) -> SinusoidalPositions | None:
    """Return the module for a `positions` choice; ValueError for an unknown one.

    None adds nothing to embeddings: of "rotary" positions attention knows, see
    `fwlight.mixers.MultiHeadAttention`.
    """
    check_choice("positions", positions, POSITIONS)
    if positions in ("rotary", "none"):
        return None
    return SinusoidalPositions(d_model, reverse=positions == "sinusoidal_reversed")
