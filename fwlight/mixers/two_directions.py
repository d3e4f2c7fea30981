"""A mixer that runs over a sequence and over its reverse, for sequences that are seen whole."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_factory
from fwlight.mixers.base import Mixer


class TwoDirections(Mixer):
    """Add what one causal mixer says of x_1 ... x_t to what another one says of x_T ... x_t.

    A memory that is written in order, and read at every token, knows what came before alone; of
    these two every token sees all others, each from its own side, as in Vision Mamba (Zhu et al.
    2024, arXiv 2401.09417). Each mixer has half of the heads, so that both together have the
    weights of one.

    Args:
        d_model: Width of input and output.
        n_heads: Number of heads of both together; must be even.
        d_head: Size of a head.
        mixer: Makes each of them from (d_model, n_heads, d_head).

    Raises:
        ValueError: If `n_heads` is odd, or a mixer is given instead of what makes one.
    """

    forwards: Any  # as `Mixer`
    backwards: Any

    def __init__(
        self, d_model: int, n_heads: int, d_head: int, *, mixer: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        check_factory(mixer=mixer)
        if n_heads % 2:
            raise ValueError(f"n_heads={n_heads} must be even: half of them run backwards")
        sizes = {"d_model": d_model, "n_heads": n_heads // 2, "d_head": d_head}
        self.forwards, self.backwards = mixer(**sizes), mixer(**sizes)
        self.bare = getattr(self.forwards, "bare", False)
        # Of the two, which are of one kind.
        self.allow_native = getattr(self.forwards, "allow_native", True)

    @property
    def state_size(self) -> int | None:
        """Nothing is carried: there is nothing to go on from."""
        return None

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        causal: bool = True,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
        initial_state: Any = None,
    ) -> tuple[Float[Tensor, "b t m"], None]:
        """Let every token see all of them; arguments as of `Mixer`.

        Raises:
            ValueError: If it is to be causal, to go on from a state, or of several sequences.
        """
        if starts is not None:
            raise ValueError("a mixer of two directions takes one sequence a row")
        if causal or initial_state is not None:
            raise ValueError("a mixer of two directions sees later tokens: it cannot be causal")
        reverse = None if padding_mask is None else padding_mask.flip(1)
        y, _ = self.forwards(x, padding_mask=padding_mask)
        z, _ = self.backwards(x.flip(1), padding_mask=reverse)
        return y + z.flip(1), None
