"""The first part of the report: what memories are worth, what limits them, what to change."""

import html
from collections.abc import Sequence

from fwlight.diagnostics.interventions import Effects, is_above_noise
from fwlight.diagnostics.worth import (
    HEALTHY,
    INTERFERENCE,
    LOCAL,
    ROOM,
    RULE,
    STRENGTH,
    UNUSED,
    Advice,
    Named,
    horizon,
    number,
    worth,
)
from fwlight.pages import chip, table

COLOURS = {
    RULE: "#b7791f",
    ROOM: "#c8453b",
    INTERFERENCE: "#8a4fa8",
    STRENGTH: "#2f6fb0",
    HEALTHY: "#2a9d6f",
    LOCAL: "#5c8a8a",
    UNUSED: "#8b939b",
}
MOST_ADVICE = 6
COLUMNS = {
    "superseded removed": ("no_superseded",),
    "old removed": ("last_",),
    "best beta": ("beta_", "g_1"),
    "best linear memory": ("linear",),
    "unlimited memory": ("nearest", "softmax"),
}
"""Heading, and beginnings of the names of the changes of which the best is shown."""
HEADING = ("", "verdict", "worth", "reaches", *COLUMNS)
_NOTHING = "Nothing here: no change that was tried lowers the loss above the noise."
_NO_KEY = "What lowers the loss below has no key of the configuration that stands for it."
EXPLAINED = (
    "All numbers are nats per target, with their standard error over sequences: what the loss of "
    "the whole model becomes if this memory alone is changed, nothing being trained again. Worth: "
    "its mean takes the place of what it returns. Reaches: the least n at which emptying it before "
    "every n-th token costs nothing. Other columns: the best change of their kind; below 0 "
    "it lowers the loss. Grey is within the noise (two standard errors, and 0.001)."
)


def worth_section(found: Sequence[Effects], advice: Sequence[Advice]) -> str:
    """Return the section as HTML.

    Args:
        found: Of every layer, from `intervene`.
        advice: What to change, from `advise`.
    """
    rows = [effects_row(x.layer.name, x.whole) for x in found]
    parts = ["<h2>Verdict: what should be changed?</h2>", advice_list(found, advice)]
    parts.append(table(HEADING, rows))
    parts.append(f'<p class="of">{EXPLAINED}</p>')
    for x in found:
        heads = [effects_row(f"head {i}", effects) for i, effects in enumerate(x.heads) if effects]
        if heads:
            name = html.escape(f"Heads of {x.layer.name}, each changed alone")
            shown = f"<details><summary>{name}</summary>{table(HEADING, heads)}</details>"
            parts.append(shown)
    return "".join(parts)


def advice_list(found: Sequence[Effects], advice: Sequence[Advice]) -> str:
    """Return what to change, or why there is nothing; arguments as of `worth_section`."""
    items = "".join(
        f"<li><b>{html.escape(x.change)}</b> in {html.escape(x.layer)}"
        f"{f': up to {number(x.nats)} nats' if x.nats else ''}</li>"
        for x in advice[:MOST_ADVICE]
    )
    if not items:
        return f"<p>{_NO_KEY if _limited(found) else _NOTHING}</p>"
    return (
        "<p>In the order in which to try it, what gains most before training first:</p>"
        f"<ol>{items}</ol>"
    )


def _limited(found: Sequence[Effects]) -> bool:
    verdicts = {worth(x).verdict for one in found for x in (one.whole, *one.heads) if x}
    return bool(verdicts & {RULE, ROOM, INTERFERENCE, STRENGTH})


def effects_row(name: str, effects: Named) -> list[str]:
    """Return the cells below `HEADING` of a layer or a head."""
    one = worth(effects)
    cells = [html.escape(name), chip(one.verdict, COLOURS[one.verdict])]
    cells += [_cell(*effects["mean"]), _reach(effects)]
    for beginnings in COLUMNS.values():
        of = {x: y for x, y in effects.items() if x.startswith(beginnings)}
        known = {x: y for x, y in of.items() if y[0] == y[0]}
        best = min(known, key=lambda x: known[x][0], default=None)
        label = "" if best is None or beginnings in (("linear",), ("no_superseded",)) else best
        cells.append("" if best is None else _cell(*known[best], label=label))
    return cells


def _reach(effects: Named) -> str:
    tried = [int(x[6:]) for x in effects if x.startswith("empty_")]
    if not tried:
        return ""
    reach = horizon(effects)
    return f"over {max(tried)}" if reach is None else str(reach)


def _cell(effect: float, error: float, *, label: str = "") -> str:
    text = f"{number(effect)} ± {number(error)}"
    text += f" ({html.escape(label)})" if label else ""
    noise = not is_above_noise(abs(effect), error)
    return f'<span class="of">{text}</span>' if noise else text
