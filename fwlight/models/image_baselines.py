"""Classifiers of images without attention, to compare with."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.models.dropout import Dropout


class MLP(nn.Module):
    """Hidden layers of ReLU units on all pixels at once, and a linear read-out.

    Args:
        n_classes: Number of classes.
        shape: Channels, height and width of an image.
        n_layers: Number of hidden layers.
        d_ff: Their width.
        dropout: Dropout probability after each of them.

    Raises:
        ValueError: If a size is below 1.
    """

    only_relu = True
    """Nothing but linear layers in a row and ReLU between them, of inputs in [-1, 1]."""

    def __init__(
        self,
        *,
        n_classes: int,
        shape: tuple[int, int, int],
        n_layers: int,
        d_ff: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_sizes(n_classes=n_classes, n_layers=n_layers, d_ff=d_ff)
        widths = [math.prod(shape), *[d_ff] * n_layers]
        self.layers = nn.Sequential()
        for narrow, wide in pairwise(widths):
            self.layers.extend([nn.Linear(narrow, wide), nn.ReLU(), Dropout(dropout)])
        self.output = nn.Linear(d_ff, n_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        """Return the logits of the classes, given pixels in [0, 1]."""
        return self.output(self.layers(2 * images.flatten(1) - 1))


class ConvNet(nn.Module):
    """Stages of convolution, norm, ReLU and pooling, then the mean over the places left.

    The norm is over groups of channels of one image, so that no image sees another one of its batch
    (Wu and He 2018, arXiv 1803.08494).

    Args:
        n_classes: Number of classes.
        shape: Channels, height and width of an image.
        n_layers: Number of stages; each halves height and width, as far as they go.
        d_model: Channels of every stage; a multiple of 8.
        dropout: Dropout probability after each of them.

    Raises:
        ValueError: If a size is below 1, or `d_model` no multiple of 8.
    """

    def __init__(
        self,
        *,
        n_classes: int,
        shape: tuple[int, int, int],
        n_layers: int,
        d_model: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_sizes(n_classes=n_classes, n_layers=n_layers, d_model=d_model)
        if d_model % _GROUPS:
            raise ValueError(f"d_model={d_model} must be a multiple of {_GROUPS}, groups of a norm")
        channels, *sides = shape
        self.layers = nn.Sequential()
        for _ in range(n_layers):
            self.layers.extend(
                [
                    nn.Conv2d(channels, d_model, 3, padding=1),
                    nn.GroupNorm(_GROUPS, d_model),
                    nn.ReLU(),
                    nn.MaxPool2d(2) if min(sides) > 1 else nn.Identity(),
                    Dropout(dropout),
                ]
            )
            channels, sides = d_model, [max(1, side // 2) for side in sides]
        self.output = nn.Linear(d_model, n_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        """Return the logits of the classes, given pixels in [0, 1]."""
        return self.output(self.layers(2 * images - 1).mean((2, 3)))


_GROUPS = 8
