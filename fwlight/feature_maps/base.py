"""What every feature map offers to a memory."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn


class FeatureMap(nn.Module):
    """The map phi applied to queries and keys, one head vector at a time: `[..., d] -> [..., k]`.

    Most maps treat queries and keys alike and only define `forward`. A map whose numerical
    stabiliser differs between the two overrides `query` and `key`. `normalised` is a short cut,
    whose result must be that of both and of the division.
    """

    signed = False
    """Whether features may be negative, so that a sum of theirs may be near 0."""

    nonnegative_kernel = False
    """Whether phi(q).phi(k) is never negative though features may be."""

    allow_native = True
    """Whether compiled code may compute it, as the back end of its memory's rule says."""

    def d_dot(self, d_head: int) -> int:
        """Return the feature size k for head vectors of size `d_head`."""
        return d_head

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Map head vectors `x` to features."""
        raise NotImplementedError

    def query(self, q: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t k"]:
        """Return the features of queries."""
        return self(q)

    def key(
        self,
        k: Float[Tensor, "b h t d"],
        *,
        offset: Float[Tensor, "b h"] | None = None,
        scale_cancels: bool = False,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h"] | None]:
        """Return the features of keys and the offset to carry to the next segment.

        Args:
            k: Keys of one segment.
            offset: What this method returned for the segment before; None at the start.
            scale_cancels: Whether the memory divides each key's features by their sum, so that a
                factor per token changes nothing.
            padding_mask: True where a position is padding.
            starts: True at the first token of a sequence; what is returned is of the last one.
        """
        del offset, scale_cancels, padding_mask, starts
        return self(k), None

    def normalised(
        self, x: Float[Tensor, "b h t d"], norm: str, eps: float
    ) -> Float[Tensor, "b h t k"] | None:
        """Return features divided as `norm` says, if there is one pass for both, else None.

        Of queries and keys alike, for maps whose keys have no offset; as
        `fwlight.mixers.normalisation.normalise` of the features.
        """
        del x, norm, eps

    def read_weights(
        self,
        update_rule: Callable[..., Any],
        q: Float[Tensor, "b h k"],
        x: Float[Tensor, "b h t d"],
        beta: Float[Tensor, "b h t"] | None,
        *,
        eps: float | None,
    ) -> Float[Tensor, "b h t"] | None:
        """Return what one query reads of keys whose features are never stored, or None.

        As `fwlight.ops.read_weights` of the features of x, which are divided by their sum and eps
        unless that is None. A map that has no such short cut leaves this as it is.
        """
        del update_rule, q, x, beta, eps

    def start_sequence(self) -> None:
        """Called before a memory starts from nothing; a random map may take a new draw."""
