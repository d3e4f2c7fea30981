"""What a block asks of a layer that mixes tokens."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn


class Mixer(nn.Module):
    """A layer through which tokens see each other: attention over any memory, or a recurrent net.

    Its state is any pytree (torch.utils._pytree) of tensors whose first dimension is the batch.
    """

    allow_native = True
    """Whether dropout around it may run compiled code: not where a back end's name keeps it out."""

    bare = False
    """Whether a block around it adds nothing: no residual sum, norm or feed-forward layer."""

    @property
    def state_size(self) -> int | None:
        """How many numbers are carried for one sequence; None where they grow with its length."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], Any]:
        """Return what every token receives, and the state to go on from.

        Args:
            x: The tokens.
            causal: A token sees those before it and itself; otherwise all of them.
            padding_mask: True where a position is padding: it leaves no trace.
            starts: True where a token is the first of a sequence, which sees nothing before it; see
                `fwlight.packing`. None: a row is one sequence. Of causal layers.
            initial_state: The state to continue from; None is empty.
        """
        raise NotImplementedError

    def empty_state(self, like: Float[Tensor, "b t m"]) -> Any:
        """Return the state of sequences that have shown nothing yet.

        Args:
            like: Inputs of as many sequences, for its first dimension, dtype and device alone.
        """
        raise NotImplementedError
