"""What limits a memory, in nats per target, and what to change about it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from fwlight.diagnostics.interventions import LEAST, Effects, is_above_noise
from fwlight.diagnostics.kind import kind_of

UNUSED, LOCAL, HEALTHY = "unused", "local", "healthy"
RULE, ROOM = "limited by rule", "limited by room"
INTERFERENCE, STRENGTH = "limited by interference", "limited by writing strength"
VERDICTS = (RULE, ROOM, INTERFERENCE, STRENGTH, HEALTHY, LOCAL, UNUSED)
LOCAL_TOKENS = 4
"""A memory is local that loses nothing if it is emptied before every so many tokens."""
SHARE = 0.1
"""Of what a memory is worth: what a local one may lose, in nats, if that is above the noise."""
_OF: Mapping[str, tuple[str, ...]] = {
    RULE: ("linear",),
    ROOM: ("nearest", "softmax"),
    INTERFERENCE: ("no_superseded", "last_"),
    STRENGTH: ("beta_", "g_1"),
}
"""Beginnings of the names of the changes whose gain says so."""

Named = Mapping[str, tuple[float, float]]


class Worth(NamedTuple):
    """What is found of a memory, or of one head."""

    verdict: str
    """One of `VERDICTS`."""
    nats: float
    """What the verdict rests on: the gain that is possible, or else what the memory is worth."""
    error: float
    """Its standard error."""
    by: str
    """The change whose effect that is."""


class Advice(NamedTuple):
    """One thing to change."""

    nats: float
    """What the change that stands for it gains in the layer before anything is trained."""
    layer: str
    change: str
    """Keys of the configuration, and why."""


def worth(effects: Named) -> Worth:
    """Return the verdict on a memory, by the effects of `intervene`.

    An effect counts if it is above `LEAST` = 0.001 nats and two standard errors.

    - unused: its mean instead of its reads costs nothing;
    - limited by writing strength, interference, rule or room: forced write strengths, removed
      writes, the best linear memory, or an unlimited memory *beyond what that gains*, lower the
      loss; the largest gain of these says which;
    - local: no such gain, and to be emptied before every 4th token costs nothing, or no more than a
      tenth of what the memory is worth;
    - healthy: else.
    """
    value = effects["mean"]
    if not is_above_noise(*value):
        return Worth(UNUSED, *value, "mean")
    gains = {limit: gain for limit in _OF if (gain := _gain(effects, limit)) is not None}
    if RULE in gains and ROOM in gains:
        more = gains[ROOM].nats - gains[RULE].nats
        gains[ROOM] = gains[ROOM]._replace(nats=more)
        if more <= LEAST:
            del gains[ROOM]
    if gains:
        return max(gains.values(), key=lambda gain: gain.nats)
    emptied = effects.get(f"empty_{LOCAL_TOKENS}")
    if emptied and (not is_above_noise(*emptied) or emptied[0] <= SHARE * value[0]):
        return Worth(LOCAL, *value, "mean")
    return Worth(HEALTHY, *value, "mean")


def horizon(effects: Named) -> int | None:
    """Return the least n at which emptying every n tokens costs less than the noise.

    None if every n that was tried costs more: the memory reaches further.
    """
    tried = sorted(int(name[6:]) for name in effects if name.startswith("empty_"))
    return next((n for n in tried if not is_above_noise(*effects[f"empty_{n}"])), None)


def advise(network: nn.Module, found: Sequence[Effects]) -> list[Advice]:
    """Return what to change, what gains most first; never what a memory has already.

    Each limit of a layer, and of heads that the layer as a whole does not show, is turned into keys
    of the configuration. Effects are those before training, of the layer's memory alone: an order
    to try changes in, no promise.
    """
    given: dict[tuple[str, str], Advice] = {}
    for effects in found:
        if effects.layer.is_softmax:
            continue
        verdicts = [worth(effects.whole), *(worth(x) for x in effects.heads if x)]
        for one in verdicts:
            for change in _changes(network, effects.layer, one):
                key = (effects.layer.name, change)
                if key not in given or given[key].nats < one.nats:
                    given[key] = Advice(one.nats, effects.layer.name, change)
        unused = [i for i, x in enumerate(effects.heads) if x and worth(x).verdict == UNUSED]
        if unused and len(unused) < len(effects.heads):
            text = (
                f"fewer heads (size.n_heads={len(effects.heads)} now): {len(unused)} of them unused"
            )
            given[effects.layer.name, text] = Advice(0.0, effects.layer.name, text)
    return sorted(given.values(), key=lambda advice: -advice.nats)


def in_words(effects: Effects) -> str:
    """Return one line on a layer: what it is worth, and what limits its heads."""
    value, error = effects.whole["mean"]
    reach = horizon(effects.whole)
    counts = [worth(x).verdict for x in effects.heads if x]
    heads = ", ".join(f"{x} {counts.count(x)}/{len(counts)}" for x in VERDICTS if x in counts)
    whole = worth(effects.whole)
    far = (
        ""
        if not any(x.startswith("empty_") for x in effects.whole)
        else (f", reaches {f'{reach} tokens' if reach else 'further than was tried'}")
    )
    return (
        f"worth {number(value)} nats (standard error {number(error)}){far}; {whole.verdict}"
        + (f" by {number(whole.nats)} nats ({whole.by})" if whole.by != "mean" else "")
        + (f"; heads: {heads}" if heads else "")
    )


def number(x: float) -> str:
    """Write nats to three decimals, which is what `LEAST` means, or two digits where larger."""
    if x != x or abs(x) == float("inf"):
        return "-"
    return f"{x:.3f}" if abs(x) < 10 else f"{x:.3g}"


def _gain(effects: Named, limit: str) -> Worth | None:
    """Return the largest gain among the changes of a limit that is above the noise."""
    gains = [
        Worth(limit, -effect, error, name)
        for name, (effect, error) in effects.items()
        if name.startswith(_OF[limit]) and is_above_noise(-effect, error)
    ]
    return max(gains, key=lambda gain: gain.nats, default=None)


def _changes(network: nn.Module, layer: Any, one: Worth) -> list[str]:
    """Return what can lift a limit, by what the memory has."""
    memory = layer.memory
    kind = kind_of(layer)
    if one.verdict in (RULE, INTERFERENCE):
        found = []
        if kind == "sum":
            found.append("model/update_rule=delta (now sum): replaces what is written under a key")
        if one.verdict == INTERFERENCE and "decay" not in memory.gates.emits:
            norm = "" if memory.read_norm == "none" else " with model.read_norm=none"
            found.append(f"model/decay=scalar{norm} (now none): lets old writes fade")
        if one.verdict == RULE and kind == "delta" and memory.writes == 1:
            found.append("model.writes=2 (now 1): two steps towards the values a token")
        if one.verdict == RULE and kind == "delta" and memory.key_norm not in ("l2", "l2_smooth"):
            found.append(
                f"model.key_norm=l2 (now {memory.key_norm}): a write replaces all of a value"
            )
        return found
    if one.verdict == ROOM:
        nu = getattr(memory.feature_map, "nu", None)
        more = [f"size.d_head above {memory.d_head}"]
        if nu is not None and nu < 2 * memory.d_head - 1:
            more.insert(0, f"model.feature_map.nu={nu + 1} (now {nu})")
        if layer.n_heads > 1:
            more.append(f"half of {layer.n_heads} heads, twice as wide")
        return [f"{x}: {memory.d_dot} features now" for x in more]
    if one.verdict == STRENGTH:
        found = []
        maximum = max((getattr(gate, "maximum", 0) for gate in memory.gates), default=0)
        if one.by == "beta_2" and maximum and maximum < 2:
            found.append(f"model.beta_max=2 (now {maximum:g}): stronger writes")
        if one.by == "beta_1" and maximum and maximum < 1:
            found.append(f"model.beta_max=1 (now {maximum:g}): stronger writes")
        if one.by == "g_1" and memory.key_norm not in ("l2", "l2_smooth"):
            found.append(f"model.key_norm=l2 (now {memory.key_norm}): writes of g = beta")
        return found
    if one.verdict == LOCAL and not has_short_conv(network, memory):
        return ["model.short_conv=4 (now 0): the last few tokens need no memory then"]
    return []


def has_short_conv(network: nn.Module, memory: Any) -> bool:
    """Whether the layer around a memory has a short convolution."""
    around = (x for x in network.modules() if getattr(x, "memory", None) is memory)
    return any(getattr(x, "short_conv", None) is not None for x in around)
