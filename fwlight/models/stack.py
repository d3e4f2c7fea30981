"""Blocks one after the other, whose mixers follow a pattern."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fwlight.models.blocks import Block
from fwlight.models.dropout import locked_dropout

MixerFactory = Callable[..., nn.Module]


def pattern(
    mixer: MixerFactory, alternate: MixerFactory | None, every: int, *, n_layers: int
) -> list[MixerFactory]:
    """Return the mixers of layers 0, 1, ... of a hybrid: `alternate` where i mod n = n - 1.

    Args:
        mixer: Makes the mixer of the other layers.
        alternate: None is no hybrid.
        every: n.
        n_layers: Layers of the stack.

    Raises:
        ValueError: If n is below 2, or so large that no layer would be of the other kind.
    """
    if not alternate:
        return [mixer]
    if not 2 <= every <= n_layers:
        raise ValueError(
            f"alternate_every={every} with n_layers={n_layers}: every so many layers one is of the "
            "other kind, at least 2 and at most all of them"
        )
    return [mixer] * (every - 1) + [alternate]


def between(mixers: Sequence[MixerFactory], widths: Sequence[int]) -> list[MixerFactory]:
    """Return mixers of layers i that map vectors of width `widths[i]` to `widths[i + 1]`.

    Raises:
        ValueError: One takes no input of another width than its own, as all but LSTMs.
    """
    made = []
    for i, (d_in, d_out) in enumerate(pairwise(widths)):
        mixer = mixers[i % len(mixers)]
        if "d_in" not in signature(mixer).parameters:
            raise ValueError(
                f"d_inner={widths[1]} is a width between LSTMs, which every layer must be"
            )
        made.append(partial(_with_widths, mixer, d_in, d_out))
    return made


def _with_widths(mixer: MixerFactory, d_in: int, d_out: int, **sizes: int) -> nn.Module:
    return mixer(**{**sizes, "d_in": d_in, "d_model": d_out})


class Stack(nn.ModuleList):
    """`n_layers` blocks; block i mixes tokens with mixers[i mod len(mixers)].

    Args:
        block: Makes a block from the keyword `attention`, which makes its mixer.
        mixers: The pattern.
        n_layers: Number of blocks.
        dropout: Probability of `locked_dropout` between blocks.
    """

    recompute = False
    """Whether training keeps of every block its inputs alone; see `recompute_blocks`."""

    def __init__(
        self,
        block: Callable[..., Block],
        mixers: Sequence[MixerFactory],
        *,
        n_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(block(attention=mixers[i % len(mixers)]) for i in range(n_layers))
        self.dropout = dropout

    def forward(
        self,
        h: Float[Tensor, "b t i"],
        *,
        initial_state: tuple[Any, ...] | None = None,
        **masks: Bool[Tensor, "b t"] | None,
    ) -> tuple[Float[Tensor, "b t m"], tuple[Any, ...]]:
        """Return what the last block leaves, and the state of every block.

        The masks are those of `Mixer.forward`.
        """
        carried = (None,) * len(self) if initial_state is None else initial_state
        states = []
        for block, state in zip(self, carried, strict=True):
            if states:
                h = locked_dropout(h, self.dropout, training=self.training)
            h, state = self.run(block, h, initial_state=state, **masks)
            states.append(state)
        return h, tuple(states)

    def run(self, block: nn.Module, *inputs: Tensor, **options: Any) -> Any:
        """Call a block of this stack; all of them are called so."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, **options)
        return block(*inputs, **options)

    def check_takes(self, keyword: str) -> None:
        """Raise ValueError if a mixer's `forward` has no argument of that name."""
        for mixer in (block.attention for block in self.blocks()):
            if keyword not in signature(mixer.forward).parameters:
                raise ValueError(f"{type(mixer).__name__}.forward takes no {keyword}")

    @property
    def state_size(self) -> int | None:
        """Numbers carried for one sequence; None where those of a block grow with its length."""
        return total_size(block.attention.state_size for block in self.blocks())

    def empty_state(self, like: Float[Tensor, "b t m"]) -> tuple[Any, ...]:
        """Return the state of sequences that have shown nothing yet; see `Mixer.empty_state`."""
        return tuple(block.attention.empty_state(like) for block in self.blocks())

    def blocks(self) -> Iterator[Any]:
        """Return the blocks."""
        return cast(Iterator[Any], iter(self))


def recompute_blocks(network: nn.Module) -> None:
    """Let the backward pass compute again what happens within the blocks of a network.

    Training then keeps the inputs and states of blocks, not what is between them: less memory for
    about a third more time (Chen et al. 2016, arXiv 1604.06174). Losses and gradients stay the same
    to the last bit: random numbers are drawn again as they were.

    Args:
        network: With one `Stack` or several.

    Raises:
        ValueError: It has none.
    """
    stacks = [part for part in network.modules() if isinstance(part, Stack)]
    if not stacks:
        raise ValueError(f"{type(network).__name__} has no blocks that could be computed again")
    for stack in stacks:
        stack.recompute = True


def total_size(sizes: Iterator[int | None]) -> int | None:
    """Return the sum, or None if one of them is."""
    known = list(sizes)
    return None if None in known else sum(cast(list[int], known))
