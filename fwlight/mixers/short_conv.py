"""The short convolution before the heads: each position sees the few before it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.ops import native
from fwlight.packing import begins_at


class ShortConv(nn.Module):
    """y_t[c] = sum_i w_i[c] x_{t-width+1+i}[c], i = 0 ... width-1: causal and depthwise, no bias.

    Positions before the first are zero. It lets a layer bind a token to its neighbour, which an
    associative memory alone cannot (Yang et al. 2024, arXiv 2406.06484).

    Args:
        channels: Number of channels.
        width: Positions that one output sees.

    Raises:
        ValueError: If there is no channel, or `width` is below 2.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        check_sizes(channels=channels)
        if width < 2:
            raise ValueError(f"short_conv={width} must be 0 (none) or at least 2")
        self.channels, self.width = channels, width
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        *,
        tail: Float[Tensor, "b w n"] | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        allow_native: bool = True,
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b w n"]]:
        """Convolve; return the result and the last width - 1 inputs of all channels.

        Padding is passed over: the result at real positions, and the tail, are those of the
        sequence without its padding; at padded positions the result is 0.

        Args:
            x: Inputs of all channels, or of the last c alone.
            tail: What an earlier call returned; None is zeros.
            padding_mask: True where a position is padding.
            starts: True at the first token of a sequence, whose inputs before it are zero.
            allow_native: Whether compiled code may do it.

        Raises:
            ValueError: If there are both starts and padding.
        """
        (b, t, c), reach = x.shape, self.width - 1
        others = self.channels - c
        carried = self.empty_tail(x) if tail is None else tail.to(x.dtype)
        if t == 0:
            return x, carried
        if starts is not None:
            if padding_mask is not None:
                raise ValueError("rows of several sequences have no padding between tokens")
            return self._apart(torch.cat([carried[..., others:], x], dim=1), starts)
        if padding_mask is None and allow_native and native.can_run(x):
            before = None if tail is None else carried[..., others:]
            y = native.native_short_conv(x, self.weight[others:].to(x.dtype), before)
            window = x if t >= reach else torch.cat([carried[..., others:], x], dim=1)
            return y, F.pad(window[:, window.shape[1] - reach :], (others, 0))
        order = count = None
        if padding_mask is not None:
            order = padding_mask.int().argsort(dim=1, stable=True)[..., None]  # real ones first
            count = t - padding_mask.sum(1)
            x = x.gather(1, order.expand_as(x))
        window = torch.cat([carried[..., others:], x], dim=1)
        weight = self.weight[others:, None]
        y = F.conv1d(window.transpose(1, 2), weight.to(x.dtype), groups=c).transpose(1, 2)
        if order is None or count is None or padding_mask is None:
            tail = window[:, t:]
        else:
            y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
            y = y.masked_fill(padding_mask[..., None], 0.0)
            last = count[:, None] + torch.arange(reach, device=x.device)
            tail = window.gather(1, last[..., None].expand(b, reach, c))
        return y, F.pad(tail, (others, 0))

    def _apart(
        self, window: Float[Tensor, "b n c"], starts: Bool[Tensor, "b t"]
    ) -> tuple[Tensor, Tensor]:
        """Convolve rows of several sequences, the tail before them, tap by tap."""
        t, reach, others = starts.shape[1], self.width - 1, self.channels - window.shape[2]
        first = begins_at(starts)
        places = torch.arange(t, device=starts.device)
        weight = self.weight[others:].to(window.dtype)
        y = window[:, reach:] * weight[:, reach]
        for back in range(1, self.width):
            tap = window[:, reach - back : reach - back + t] * weight[:, reach - back]
            y = y + tap.masked_fill((places - back < first)[..., None], 0.0)
        # Of what comes next the tail's last token is one back.
        beyond = torch.arange(t - reach, t, device=starts.device) < first[:, -1:]
        tail = window[:, t:].masked_fill(beyond[..., None], 0.0)
        return y, F.pad(tail, (others, 0))

    def empty_tail(self, like: Float[Tensor, "b t m"]) -> Float[Tensor, "b w n"]:
        """Return the inputs before the first position: zeros."""
        return like.new_zeros(like.shape[0], self.width - 1, self.channels)

    def extra_repr(self) -> str:
        """Show what no submodule shows."""
        return f"channels={self.channels}, width={self.width}"
