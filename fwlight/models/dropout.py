"""Dropout, in compiled code where there is some."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fwlight.mixers import Mixer
from fwlight.mixers.normalisation import RMSNorm
from fwlight.models.activations import Activation
from fwlight.models.cross_entropy import CrossEntropy
from fwlight.ops import native


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`, several times as fast on a CPU with a C++ compiler.

    There the mask is not stored but drawn again in the backward pass, from one seed of torch's
    generator.
    """

    allow_native = True
    """Whether compiled code may drop them; see `follow_mixers`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop numbers in training."""
        if not self.training or self.p == 0:
            return input
        if self.p < 1 and self.allow_native and native.can_run(input):
            return native.native_dropout(input, self.p)
        return super().forward(input)


def locked_dropout(
    x: Float[Tensor, "b t m"], p: float, *, training: bool
) -> Float[Tensor, "b t m"]:
    """Drop the same numbers at every token of a row (Gal and Ghahramani 2016, arXiv 1512.05287)."""
    if not training or p == 0:
        return x
    return x * F.dropout(x.new_ones(len(x), 1, x.shape[-1]), p)


def word_dropout(
    x: Float[Tensor, "b t m"], words: Int[Tensor, "b t"], p: float, *, n_words: int, training: bool
) -> Float[Tensor, "b t m"]:
    """Drop the embeddings of whole words, each wherever it stands (Merity et al. 2018, sec. 4.3).

    Args:
        x: The embeddings.
        words: Whose they are.
        p: Probability of a word.
        n_words: Of the vocabulary.
        training: Otherwise nothing is dropped.
    """
    if not training or p == 0:
        return x
    return x * F.dropout(x.new_ones(n_words, 1), p)[words]


def follow_mixers(network: nn.Module) -> None:
    """Let a network run without compiled code where one of its mixers runs without it."""
    allowed = all(x.allow_native for x in network.modules() if isinstance(x, Mixer))
    for module in network.modules():
        if isinstance(module, (Dropout, CrossEntropy, RMSNorm, Activation)):
            module.allow_native = allowed
