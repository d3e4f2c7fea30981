"""What a prediction costs, in compiled code where there is some."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fwlight.ops import native
from fwlight.types import IGNORE_INDEX

WORTH_IT = 2**18
"""Logits of which fewer take longer to be handed to compiled code than it saves."""


class CrossEntropy(nn.Module):
    """-log softmax(logits)[target] of every row in at least float32, in nats.

    With label smoothing s and n logits it is -(1 - s) log p(target) - s / n sum_w log p(w) (Szegedy
    et al. 2016, sec. 7). Compiled code reads a row twice and stores no probabilities.
    """

    allow_native = True
    """Whether compiled code may compute it; see `follow_mixers`."""

    def forward(
        self,
        logits: Float[Tensor, "b n"],
        targets: Int[Tensor, " b"],
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, " b"]:
        """Return the loss of every row; 0 where the target is IGNORE_INDEX."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.allow_native and logits.numel() >= WORTH_IT and native.can_run(logits):
            return native.native_cross_entropy(logits, targets, label_smoothing)
        return F.cross_entropy(
            logits,
            targets,
            ignore_index=IGNORE_INDEX,
            label_smoothing=label_smoothing,
            reduction="none",
        )
