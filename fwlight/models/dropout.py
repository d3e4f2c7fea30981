"""Dropout, in compiled code where there is some."""

from torch import Tensor, nn

from fwlight.mixers import Mixer
from fwlight.mixers.normalisation import RMSNorm
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
        if self.training and 0 < self.p < 1 and self.allow_native and native.can_run(input):
            return native.native_dropout(input, self.p)
        return super().forward(input)


def follow_mixers(network: nn.Module) -> None:
    """Let a network run without compiled code where one of its mixers runs without it."""
    allowed = all(x.allow_native for x in network.modules() if isinstance(x, Mixer))
    for module in network.modules():
        if isinstance(module, (Dropout, CrossEntropy, RMSNorm)):
            module.allow_native = allowed
