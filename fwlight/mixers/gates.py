"""What a slow net emits beside q, k and v to program a memory: gates, each a small module.

A gate asks for rows of its layer's fused projection, and makes of their outputs what update rules
take by keyword; `fwlight.mixers.FastWeights` holds the gates of its memory.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

UpdateRule = Callable[..., tuple[Tensor | None, Tensor]]


class Gates(NamedTuple):
    """What is emitted for every token; None where a memory does without."""

    beta: Float[Tensor, "b h t"] | None = None
    """Write strengths."""
    decay: Float[Tensor, "b h t"] | Float[Tensor, "b h t k"] | None = None
    """Logarithm of the factor on what is stored, at most 0: one a head, or one a key channel."""
    erase: Float[Tensor, "b h t k"] | None = None
    """Factor on the key that erases, channel by channel; the key that writes has none."""
    write: Float[Tensor, "b h t v"] | None = None
    """Factor on the value that is written."""


NO_GATES = Gates()


class Gate(nn.Module):
    """One of them. Subclasses are made from the keywords n_heads, d_key and d_value.

    d_key is the size of a key's features. A number that depends on no token needs no row.
    """

    emits: tuple[str, ...]
    """Which of `Gates` it is; more than one where they share rows."""
    rows: int
    """Rows of the projection that it asks for."""
    per_write = True
    """Whether every write of a token has its own; a decay comes once a token, before the first."""

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the emitted numbers by name, by heads, from this gate's rows in float32."""
        raise NotImplementedError


class GateList(nn.ModuleList):
    """The gates of one memory, side by side in a projection in their order.

    Args:
        gates: No two of them may emit the same.
        writes: Writes of one token.

    Raises:
        ValueError: If two gates emit the same, or one of them emits a beta once a token of several
            writes.
    """

    def __init__(self, gates: Sequence[Gate] = (), *, writes: int = 1) -> None:
        super().__init__(gates)
        self.writes = writes
        self.emits = tuple(name for gate in gates for name in gate.emits)
        if len(set(self.emits)) < len(self.emits):
            raise ValueError(f"two gates emit the same: {', '.join(self.emits)}")
        if writes > 1 and any("beta" in gate.emits and not gate.per_write for gate in gates):
            raise ValueError(
                f"writes={writes} a token need a beta each; one gate emits one a token"
            )

    @property
    def rows(self) -> int:
        """How many numbers a token `forward` asks for."""
        return sum(map(self._rows, cast(Iterator[Gate], iter(self))))

    def forward(self, logits: Float[Tensor, "b t rows"]) -> Gates:
        """Return the gates of every write, in float32.

        Of several writes a token, those of one token stand together, and only the first decays.
        """
        # Near 1 bfloat16 has steps of 0.004.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        emitted: dict[str, Tensor] = {}
        for gate in cast(Iterator[Gate], iter(self)):
            part, logits = logits.split([self._rows(gate), logits.shape[-1] - self._rows(gate)], -1)
            if gate.per_write and self.writes > 1:
                part = part.unflatten(-1, (self.writes, gate.rows)).flatten(1, 2)
            emitted |= gate(part)
            if not gate.per_write and self.writes > 1:
                emitted |= {name: self._first(emitted[name]) for name in gate.emits}
        return Gates(**emitted)

    def _rows(self, gate: Gate) -> int:
        return gate.rows * (self.writes if gate.per_write else 1)

    def _first(self, x: Tensor) -> Tensor:
        """Give the first write of every token what was emitted once, the others 0."""
        others = x.new_zeros(()).expand(*x.shape[:3], self.writes - 1, *x.shape[3:])
        return torch.cat([x.unsqueeze(3), others], dim=3).flatten(2, 3)


class WriteStrength(Gate):
    """beta = maximum * sigmoid(logit), one a head (Schlag et al. 2021b, sec. 4.2).

    Args:
        n_heads: Number of heads.
        d_key: Not used.
        d_value: Not used.
        maximum: 1, or 2 to allow negative eigenvalues of the transition (Grazzi et al. 2025).

    Raises:
        ValueError: If `maximum` is not positive.
    """

    emits = ("beta",)

    def __init__(self, *, n_heads: int, d_key: int, d_value: int, maximum: float = 1.0) -> None:
        super().__init__()
        if maximum <= 0:
            raise ValueError(f"beta_max={maximum} must be positive")
        self.rows, self.maximum = n_heads, maximum

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return beta `[b, h, t]`."""
        return {"beta": self.maximum * logits.sigmoid().transpose(1, 2)}


class Erase(Gate):
    """maximum * sigmoid(logit), one a key channel (Gated DeltaNet-2, arXiv 2605.22791).

    Args:
        n_heads: Number of heads.
        d_key: Size of a key.
        d_value: Not used.
        maximum: 1, or 2 to allow negative eigenvalues.
    """

    emits = ("erase",)

    def __init__(self, *, n_heads: int, d_key: int, d_value: int, maximum: float = 1.0) -> None:
        super().__init__()
        self.rows, self.n_heads, self.maximum = n_heads * d_key, n_heads, maximum

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the factors `[b, h, t, k]`."""
        return {"erase": self.maximum * by_heads(logits.sigmoid(), self.n_heads)}


class Write(Gate):
    """sigmoid(logit), one a component of the value (Gated DeltaNet-2, arXiv 2605.22791)."""

    emits = ("write",)

    def __init__(self, *, n_heads: int, d_key: int, d_value: int) -> None:
        super().__init__()
        self.rows, self.n_heads = n_heads * d_value, n_heads

    def forward(self, logits: Float[Tensor, "b t rows"]) -> dict[str, Tensor]:
        """Return the factors `[b, h, t, v]`."""
        return {"write": by_heads(logits.sigmoid(), self.n_heads)}


def needs_beta(update_rule: UpdateRule) -> bool:
    """Whether an update rule has a write strength that is not optional."""
    return inspect.signature(update_rule).parameters["beta"].default is inspect.Parameter.empty


def rule_options(
    update_rule: UpdateRule,
    gates: Gates,
    k: Float[Tensor, "b h t k"],
    padding_mask: Bool[Tensor, "b t"] | None = None,
    starts: Bool[Tensor, "b t"] | None = None,
) -> dict[str, Tensor]:
    """Return what a rule takes beside beta: only what there is, as not every rule has all.

    Args:
        update_rule: The rule.
        gates: Of every write.
        k: The keys that are written.
        padding_mask: True where nothing is written, which decays nothing either.
        starts: True where the memory is emptied before the write: by a decay of -inf, or by
            `empties` where a rule has that instead.

    Raises:
        ValueError: If there are starts, and the rule has neither.
    """
    options: dict[str, Tensor] = {}
    decay = gates.decay
    if decay is not None and padding_mask is not None:
        decay = _filled(decay, padding_mask, 0.0)
    if starts is not None:
        if takes(update_rule, "decay"):
            decay = k.new_zeros(k.shape[:3]) if decay is None else decay
            decay = _filled(decay, starts, -torch.inf)
        elif takes(update_rule, "empties"):
            options["empties"] = starts[:, None].expand(k.shape[:3])
        else:
            raise ValueError(
                f"{_name(update_rule)} takes no decay, by which a memory is emptied where another "
                "sequence begins"
            )
    if decay is not None:
        options["decay"] = decay
    if gates.erase is not None:
        options["erase_key"] = gates.erase * k
    return options


def _filled(decay: Tensor, rows: Tensor, value: float) -> Tensor:
    return decay.masked_fill(rows[:, None] if decay.ndim == 3 else rows[:, None, :, None], value)


def takes(update_rule: UpdateRule, keyword: str) -> bool:
    """Whether an update rule has an argument of that name."""
    return keyword in inspect.signature(update_rule).parameters


def _name(update_rule: UpdateRule) -> str:
    return getattr(update_rule, "func", update_rule).__name__


def check_gates(update_rule: UpdateRule, gates: GateList, *, read_norm: str) -> None:
    """Raise ValueError if a rule does not take what the gates emit, or a read's norm does not."""
    if read_norm == "full" and not needs_beta(update_rule):
        raise ValueError("read_norm='full' needs a rule that removes: delta or fwm")
    if read_norm != "none" and "decay" in gates.emits:
        raise ValueError(
            f"read_norm={read_norm!r} beside a decay: the sum of the keys would have to decay too; "
            "use read_norm='none'"
        )
    keywords = {"beta": "beta", "decay": "decay", "erase": "erase_key", "write": "v"}
    for name in gates.emits:
        if not takes(update_rule, keywords[name]):
            raise ValueError(
                f"{_name(update_rule)} takes no {name}, which a gate of this memory emits"
            )


def by_heads(x: Float[Tensor, "b t n"], n_heads: int) -> Float[Tensor, "b h t d"]:
    """Cut a row of numbers into those of every head."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
