"""An agent: what it does, and what it expects of that, over any causal mixers."""

from functools import partial
from inspect import signature
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.models.blocks import DecoderBlock, make_norm
from fwlight.models.dropout import follow_mixers
from fwlight.models.stack import MixerFactory, Stack, pattern


class ActorCritic(nn.Module):
    """Blocks over vectors, and two linear maps: the policy's logits, and the value.

    A first mixer that takes inputs of any width (`d_in`), as an LSTM does, reads them as they are,
    which gives the agents of Schlag et al. 2021a; before others there is a linear map.

    Args:
        n_inputs: Numbers that are seen at a step.
        n_actions: Actions to choose from.
        d_model: Width.
        n_layers: Number of blocks.
        n_heads: Heads per block.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layers.
        dropout: Dropout probability.
        attention: Makes the mixer of a layer from (d_model, n_heads, d_head).
        alternate: Makes that of every `alternate_every`-th layer instead, for hybrids.
        alternate_every: See `fwlight.models.stack.pattern`.
        norm: "post" or "pre".
        feed_forward: "relu", "gelu" or "swiglu".
        block_norm: "layernorm" or "rmsnorm".

    Raises:
        ValueError: If a size is below 1 or an option unknown.
    """

    def __init__(
        self,
        *,
        n_inputs: int,
        n_actions: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        attention: MixerFactory,
        alternate: MixerFactory | None = None,
        alternate_every: int = 4,
        norm: str = "pre",
        feed_forward: str = "relu",
        block_norm: str = "layernorm",
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
        check_sizes(n_inputs=n_inputs, n_actions=n_actions, **sizes)
        block = partial(
            DecoderBlock,
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_ff=d_ff,
            dropout=dropout,
            norm=norm,
            feed_forward=feed_forward,
            block_norm=block_norm,
        )
        kinds = pattern(attention, alternate, alternate_every, n_layers=n_layers)
        mixers = [kinds[i % len(kinds)] for i in range(n_layers)]
        any_width = "d_in" in signature(attention).parameters
        if any_width:
            mixers[0] = partial(attention, d_in=n_inputs)
        self.input = nn.Identity() if any_width else nn.Linear(n_inputs, d_model)
        self.blocks = Stack(block, mixers, n_layers=n_layers)
        bare = all(block.bare for block in self.blocks.blocks())
        normed = norm == "pre" and not bare
        self.final_norm = make_norm(block_norm, d_model) if normed else nn.Identity()
        self.policy = nn.Linear(d_model, n_actions)
        self.value = nn.Linear(d_model, 1)
        follow_mixers(self)

    @property
    def state_size(self) -> int | None:
        """Numbers carried for one sequence; None where they grow with its length."""
        return self.blocks.state_size

    def forward(
        self,
        x: Float[Tensor, "b t i"],
        *,
        initial_state: tuple[Any, ...] | None = None,
    ) -> tuple[Float[Tensor, "b t a"], Float[Tensor, "b t"], tuple[Any, ...]]:
        """Return the logits of actions, the values of states, and the memories to go on from.

        Args:
            x: What is seen.
            initial_state: The memories to continue from; None are empty ones.
        """
        h, state = self.blocks(self.input(x), initial_state=initial_state)
        h = self.final_norm(h)
        return self.policy(h), self.value(h).squeeze(-1), state
