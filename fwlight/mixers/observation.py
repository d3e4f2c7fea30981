"""What memories show to those who watch them.

An observer is set on a memory for as long as somebody looks, usually one forward pass. It sees the
tensors that the operator used: after feature map, `key_norm` and the substitution of `read_norm`.
States and cached keys are valid during the call only: decoding writes over them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from jaxtyping import Bool, Float
from torch import Tensor, nn


class Writes(NamedTuple):
    """One run of a memory's update rule."""

    projected_k: Float[Tensor, "b h t d"]
    """Keys before the feature map."""
    k: Float[Tensor, "b h t k"]
    """Keys as written."""
    v: Float[Tensor, "b h t v"]
    """Values."""
    beta: Float[Tensor, "b h t"] | None
    """Write strengths as used; None for rules without."""
    key_sum: Float[Tensor, "b h k"] | None = None
    """z after the last write, by which reads are divided; None where they are not."""
    initial_state: Float[Tensor, "b h k v"] | None = None
    """The weights before the first write; None is an empty memory."""
    padding_mask: Bool[Tensor, "b t"] | None = None
    """True where a position is padding."""
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"] | None = None
    """Logarithm of the factor on the memory before every write; None is no decay."""
    erase_key: Float[Tensor, "b h t k"] | None = None
    """Keys with which is erased; None are `k`."""
    empties: Bool[Tensor, "b h t"] | None = None
    """True where a rule that does not decay empties the memory before the write."""

    @property
    def gates(self) -> dict[str, Tensor]:
        """What the rule takes beside beta, by keyword."""
        gates = {"decay": self.decay, "erase_key": self.erase_key, "empties": self.empties}
        return {name: x for name, x in gates.items() if x is not None}

    def rows(self, part: slice) -> "Writes":
        """Return those of a part of the batch."""
        return Writes(*(None if x is None else x[part] for x in self))  # pyright: ignore


class MemoryObserver(Protocol):
    """Sees a `FastWeights`."""

    def write(self, writes: Writes, /) -> None:
        """Associations are written."""

    def read(
        self, q: Float[Tensor, "b h n k"], padding_mask: Bool[Tensor, "b n"] | None = None, /
    ) -> None:
        """What was written last is read; the mask is that of the queries, None if not known."""


class AttentionObserver(Protocol):
    """Sees a `KeyValues`."""

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h s d"],
        padding_mask: Bool[Tensor, "b s"] | None,
        /,
        *,
        causal: bool,
        seen: Bool[Tensor, "b n s"] | None = None,
    ) -> None:
        """Queries attend to keys; causal: they are the last n of the s positions.

        `seen` says which keys each query sees, where that is neither all nor those before it.
        """


@contextmanager
def unobserved(network: nn.Module) -> Iterator[None]:
    """Let nobody see what the memories of a network do meanwhile."""
    watched: list[tuple[Any, Any]] = [
        (part, observer)
        for part in network.modules()
        if (observer := getattr(part, "observer", None)) is not None
    ]
    for part, _ in watched:
        part.observer = None
    try:
        yield
    finally:
        for part, observer in watched:
            part.observer = observer
