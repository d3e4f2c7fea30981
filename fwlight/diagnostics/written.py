"""What every measurement starts from: associations, the rule that writes them, and who reads."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

UpdateRule = Callable[..., Any]
"""A rule of `fwlight.ops`: `rule(q, k, v, beta, *, initial_state=None) -> (o, state)`."""


class Written(NamedTuple):
    """Associations in the order in which a memory writes them."""

    k: Float[Tensor, "b h t k"]
    """Keys as the operator used them, after feature map and normalisation."""
    v: Float[Tensor, "b h t v"]
    """Values."""
    beta: Float[Tensor, "b h t"] | None
    """Write strengths; None for rules without."""
    rule: UpdateRule
    """A function like those of `fwlight.ops`, options bound."""
    gates: Mapping[str, Tensor] = MappingProxyType({})
    """What the rule takes beside beta, by keyword: decay, erase_key."""
    initial_state: Float[Tensor, "b h k v"] | None = None
    """The state before the first write; None is zero."""
    padding_mask: Bool[Tensor, "b t"] | None = None
    """True where a position is padding: it writes nothing."""
    q: Float[Tensor, "b h n k"] | None = None
    """The model's own queries, features already; None measures without them."""
    query_mask: Bool[Tensor, "b n"] | None = None
    """True where a query is padding."""
    key_sum: Float[Tensor, "b h k"] | None = None
    """z, the sum of the keys, where reads are divided by z . q; None divides nothing."""
    read_eps: float = 0.0
    """Added to that divisor."""
    projected_k: Float[Tensor, "b h t d"] | None = None
    """Keys before the feature map; None where they are not known."""
    tokens: Int[Tensor, "b t"] | None = None
    """Ids of what is written; None where they are not known."""

    def run(
        self, part: slice = slice(None), *, start: Tensor | None, q: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """Run the rule on some of the writes; return what queries of theirs read, and the state."""
        beta = None if self.beta is None else self.beta[:, :, part]
        gates = {name: x[:, :, part] for name, x in self.gates.items()}
        k, v = self.k[:, :, part], self.v[:, :, part]
        return self.rule(q, k, v, beta, initial_state=start, **gates)

    def real(self) -> "Written":
        """Return the same with zeros at padding, in float32 at least, as measurements want it."""
        k, v, beta, gates = self.k, self.v, self.beta, self.gates
        if self.padding_mask is not None:
            hole = self.padding_mask[:, None]
            k, v = (x.masked_fill(hole[..., None], 0.0) for x in (k, v))
            beta = None if beta is None else beta.masked_fill(hole, 0.0)
            gates = {
                name: x.masked_fill(hole if x.ndim == 3 else hole[..., None], 0.0)
                for name, x in gates.items()
            }
        k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        return self._replace(k=k, v=v, beta=beta, gates=gates)
