"""The softmax over a whole vocabulary, without its logits all at once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fwlight.autocast import without_autocast
from fwlight.types import IGNORE_INDEX

CHUNK = 256
"""Positions whose logits are there at a time; see `python -m benchmarks.lm_step`."""


def check_chunked() -> None:
    """Raise ValueError where this torch has no chunked cross-entropy."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ValueError(
            f"output='chunked' needs torch.nn.functional.linear_cross_entropy, which torch "
            f"{torch.__version__} does not have; use 'dense' or 'adaptive'"
        )


def chunked_nll(
    hidden: Float[Tensor, "b m"],
    weight: Float[Tensor, "n m"],
    bias: Float[Tensor, " n"],
    targets: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Return -log softmax(W h + b)[target] in float32; 0 where the target is IGNORE_INDEX.

    torch's `linear_cross_entropy` computes the gradient with the loss, `CHUNK` positions at a time:
    it cannot be differentiated twice.
    """
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=CHUNK, chunking_method=None, acc_policy="compact"
    )
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with without_autocast(hidden):
        return F.linear_cross_entropy(
            hidden.to(dtype),
            weight.to(dtype),
            targets,
            linear_bias=bias.to(dtype),
            reduction="none",
            ignore_index=IGNORE_INDEX,
            options=options,
        )
