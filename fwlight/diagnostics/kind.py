"""What an update rule does with what its key retrieves, found by watching two writes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def rule_kind(
    rule: Callable[..., Any],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t"] | None,
) -> str:
    """Say whether a rule writes as "sum" does, as "delta" does, or in some "other" way.

    The writes are so small that a projection onto the unit ball does nothing.

    Args:
        rule: A function like those of `fwlight.ops`, options bound.
        k: Keys; their number of heads, size and type count, not their values.
        v: Values, likewise.
        beta: None for rules without a write strength.
    """
    options = {"device": k.device, "dtype": k.dtype}
    keys = torch.linspace(0.2, 1.0, 2 * k.shape[3], **options).view(2, -1)
    keys = keys / keys.square().sum(-1, keepdim=True).sqrt()
    values = torch.linspace(-0.1, 0.2, 2 * v.shape[3], **options).view(2, -1) / v.shape[3] ** 0.5
    K, V = (x.expand(1, k.shape[1], *x.shape) for x in (keys, values))
    strength = 1.0 if beta is None else 0.5
    b = None if beta is None else torch.full_like(K[..., 0], strength)
    first, second = (
        rule(None, K[:, :, :n], V[:, :, :n], None if b is None else b[:, :, :n])[1].double()
        for n in (1, 2)
    )
    key, value = K[:, :, 1, :, None].double(), V[:, :, 1, None].double()
    added = first + strength * key * value
    replaced = added - strength * key * (key.mT @ first)
    limit = 1e-5 * float(second.abs().max())
    for kind, wanted in (("delta", replaced), ("sum", added)):
        if float((second - wanted).abs().max()) <= limit:
            return kind
    return "other"


def kind_of(layer: Any) -> str:
    """Return `rule_kind` of the rule of a `fwlight.diagnostics.layers.Layer`."""
    memory = layer.memory
    k = torch.zeros(1, layer.n_heads, 1, memory.d_dot)
    v = k.new_zeros(1, layer.n_heads, 1, memory.d_value)
    return rule_kind(memory.update_rule, k, v, k[..., 0] if memory.has_beta else None)


def rules(layers: Iterable[Any]) -> str:
    """Name what writes in layers, each kind once: "delta rule with a decay, softmax attention"."""
    said = []
    for layer in layers:
        if layer.is_softmax:
            said.append("softmax attention")
            continue
        forgets = " with a decay" if "decay" in layer.memory.gates.emits else ""
        said.append(f"{kind_of(layer)} rule{forgets}")
    return ", ".join(dict.fromkeys(said))
