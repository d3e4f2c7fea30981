"""The report of `action=diagnose`: one HTML file that needs nothing else, the verdict first."""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from fwlight.diagnostics.beta import TokenBeta
from fwlight.diagnostics.figures import (
    COLOURS,
    beta_figure,
    capacity_figure,
    limits_figure,
    norms_figure,
    recall_figure,
)
from fwlight.diagnostics.findings import Findings
from fwlight.diagnostics.interventions import Effects
from fwlight.diagnostics.kind import kind_of
from fwlight.diagnostics.verdict import HEALTHY, LIMIT, OVER_CAPACITY, RULE_LIMITED, UNUSED
from fwlight.diagnostics.worth import Advice
from fwlight.diagnostics.worth_report import worth_section
from fwlight.pages import chip, image, page, panels, table

MEANING = {
    OVER_CAPACITY: (
        f"No linear memory of this size could hold these associations: the best possible error "
        f"exceeds {LIMIT}. More features (model.feature_map.nu, size.d_head) or shorter sequences "
        "help; another rule does not."
    ),
    RULE_LIMITED: (
        f"The keys leave room (best possible error at most {LIMIT}), but the memory does not use "
        f"it: the error of recall exceeds {LIMIT}."
    ),
    HEALTHY: "What was written last under every key can be read back.",
    UNUSED: "Nothing was written.",
}
COLUMNS = (
    ("load", "load/mean", 1, None),
    ("utilisation", "utilisation/mean", 1, None),
    ("best possible error", "best/error", 1, None),
    ("error of recall", "last/scaled_error", 2, None),
    ("identified (by chance)", "last/identified", 1, "last/chance"),
    ("|cos| of keys (random)", "interference/mean", 1, "interference/random_mean"),
    ("norm of state", "frobenius/mean", 1, None),
    ("effective rank", "effective_rank/mean", 1, None),
    ("beta", "beta/mean", 1, None),
    ("g", "g/mean", 1, None),
)
"""Heading, reported value, its exponent, and the value shown behind it in brackets."""
HEADING = ("verdict", *(column[0] for column in COLUMNS), "measured capacity")


def html_report(
    findings: Sequence[Findings],
    *,
    title: str,
    of: str,
    configuration: str,
    decode: Callable[[list[int]], str] | None = None,
    effects: Sequence[Effects] = (),
    advice: Sequence[Advice] = (),
) -> str:
    """Return the report as the text of an HTML file.

    Args:
        findings: Of every layer, from `find_out`.
        title: What was looked at.
        of: On what, in words.
        configuration: Text of the run's configuration.
        decode: Turns token ids into text; None shows the ids.
        effects: Of changes of every layer, from `intervene`; none leaves the verdict to what the
            memories hold.
        advice: What to change, from `advise`.
    """
    memories = [found for found in findings if not found.layer.is_softmax]
    parts = [worth_section(effects, advice)] if effects else []
    if memories:
        heading = "What the memories hold" if effects else "Verdict"
        parts += [_summary(memories, heading, advised=not effects), _figures(memories)]
        parts += [_tokens(found, decode) for found in memories if found.tokens is not None]
        parts += ["<h2>Every head</h2>", *(_heads(found) for found in memories)]
    parts += [_attention([found for found in findings if found.layer.is_softmax])]
    return page(parts, title=title, of=of, configuration=configuration)


def _summary(memories: Sequence[Findings], heading: str, *, advised: bool) -> str:
    counts = Counter(verdict for found in memories for verdict in found.heads.verdicts)
    total = sum(counts.values())
    advice = f" {_advice(memories)}" if advised else ""
    meaning = {**MEANING, RULE_LIMITED: f"{MEANING[RULE_LIMITED]}{advice}"}
    said = [
        f"<p>{chip(verdict, COLOURS[verdict])}<b>{counts[verdict]} of {total} heads.</b> "
        f"{html.escape(meaning[verdict])}</p>"
        for verdict in (OVER_CAPACITY, RULE_LIMITED, HEALTHY, UNUSED)
        if counts[verdict]
    ]
    # Of a rule that writes in another way g is no eigenvalue.
    expanding = [
        x.layer.name
        for x in memories
        if kind_of(x.layer) == "delta" and float(x.whole["g/from_2"].nan_to_num(0)) > 0
    ]
    if expanding:
        names = html.escape(", ".join(expanding))
        said.append(
            f"<p><b>Writes with g = beta |k|² of at least 2 in {names}:</b> what is stored under "
            "their keys grows.</p>"
        )
    if turning := [text for x in memories if kind_of(x.layer) == "delta" and (text := _turning(x))]:
        said.append(
            f"<p><b>Writes with g near 2 in {html.escape('; '.join(turning))}:</b> what is stored "
            "under their keys changes its sign (eigenvalue -1), which is how a memory counts in "
            "turns, as a parity. Errors do not fade with it.</p>"
        )
    if forgetting := [text for x in memories if (text := _half_lives(x))]:
        said.append(
            f"<p><b>Half of what is stored is left</b> {html.escape('; '.join(forgetting))}.</p>"
        )
    if shrinking := [x for x in memories if "shrunk/mean" in x.whole]:
        shares = ", ".join(
            f"in {x.layer.name} {float(x.whole['shrunk/mean']):.0%}" for x in shrinking
        )
        said.append(
            f"<p><b>Of all writes the norm projection shrinks</b> {html.escape(shares)}: each "
            "takes from everything that is stored.</p>"
        )
    rows = []
    for found in memories:
        held = "" if found.capacity is None else _held(found, found.capacity.median())
        of = f" of {found.layer.d_dot}" if held else ""
        cells = [*_cells(found, found.whole), held + of]
        rows.append([found.layer.name, chips(found.heads.verdicts), *cells])
    return f"<h2>{heading}</h2>{''.join(said)}{table(['layer', *HEADING], rows)}"


def _turning(found: Findings) -> str:
    """Name the heads in which at least one write of 100 turns what is stored."""
    shares = found.heads.values["g/near_2"].nan_to_num(0)
    heads = [f"head {i}: {float(x):.0%} of writes" for i, x in enumerate(shares) if x >= 0.01]
    return f"{found.layer.name} ({', '.join(heads)})" if heads else ""


def _half_lives(found: Findings) -> str:
    if "decay/half_life" not in found.heads.values:
        return ""
    lives = found.heads.values["decay/half_life"].tolist()
    return (
        f"in {found.layer.name} after {', '.join(f'{x:.3g}' for x in lives)} tokens, head by head"
    )


def _advice(memories: Sequence[Findings]) -> str:
    """Return what can help those layers whose heads are limited by their rule."""
    limited = [found for found in memories if RULE_LIMITED in found.heads.verdicts]
    choices = ["keys further apart"]
    if any(found.layer.memory.has_beta for found in limited):
        choices.insert(0, "stronger writes (beta, g)")
    if any(kind_of(found.layer) == "sum" for found in limited):
        choices.insert(0, "a rule that removes (delta instead of sum)")
    text = " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    return f"{text[0].upper()}{text[1:]} can help."


def _figures(memories: Sequence[Findings]) -> str:
    parts = [
        "<h2>Capacity and recall</h2>",
        _wrapping(capacity_figure(memories)),
        _wrapping(recall_figure(memories)),
        "<p>Dotted: the limit of the verdict, and the share of values that chance would find.</p>",
    ]
    held: dict[int, dict[str, Tensor]] = {}
    for x in memories:
        if x.capacity is not None:
            held.setdefault(x.layer.d_dot, {})[x.layer.name] = x.capacity
    parts += [image(limits_figure(y, x), narrow=True) for x, y in sorted(held.items())]
    if held:
        parts.append(
            "<p>Measured capacity: the largest number of Gaussian keys with mean and covariance of "
            "the layer's own of which 99 % are told apart; tried up to 2 d_dot.</p>"
        )
    parts += ["<h2>Fast weight norms</h2>", _wrapping(norms_figure(memories))]
    if strong := [found for found in memories if found.tokens is not None]:
        parts += ["<h2>Write strengths</h2>", _wrapping(beta_figure(strong))]
    return "".join(parts)


def _wrapping(figure: Any) -> str:
    return f'<div class="panels">{"".join(panels(figure))}</div>'


def _tokens(found: Findings, decode: Callable[[list[int]], str] | None) -> str:
    assert found.tokens is not None
    tables = []
    for title, side in zip(("highest beta", "lowest beta"), found.tokens, strict=True):
        tables.append(table([title, "mean", "seen"], list(_token_rows(side, decode))))
    name = html.escape(found.layer.name)
    return (
        f"<details><summary>Tokens by beta in {name}</summary>"
        f'<div class="tokens">{"".join(tables)}</div></details>'
    )


def _token_rows(
    side: TokenBeta, decode: Callable[[list[int]], str] | None
) -> Iterable[Sequence[str]]:
    for i, mean, n in zip(*(x.tolist() for x in side), strict=True):
        text = str(i) if decode is None else repr(decode([i]))[1:-1]
        yield html.escape(text), f"{mean:.3f}", f"{int(n)}"


def _heads(found: Findings) -> str:
    rows = []
    for i, verdict in enumerate(found.heads.verdicts):
        cells = _cells(found, {name: x[i] for name, x in found.heads.values.items()})
        cells.append("" if found.capacity is None else _held(found, found.capacity[i]))
        rows.append([str(i), chips([verdict]), *cells])
    line = html.escape(f"{found.layer.name}: {found.line}")
    return f"<details><summary>{line}</summary>{table(['head', *HEADING], rows)}</details>"


def _attention(layers: Sequence[Findings]) -> str:
    if not layers:
        return ""
    names = [f"{x}/{y}" for x in ("entropy", "span", "distance") for y in ("mean", "p5", "p95")]
    rows = [[x.layer.name, *(number(x.whole, name, 1) for name in names)] for x in layers]
    return f"<h2>Softmax attention</h2>{table(['layer', *names], rows)}"


def chips(verdicts: Sequence[str]) -> str:
    """Return verdicts as words on their colours, counted."""
    counts = Counter(verdicts)
    return "".join(
        chip(f"{verdict}{f' {counts[verdict]}' if len(verdicts) > 1 else ''}", colour)
        for verdict, colour in reversed(COLOURS.items())
        if counts[verdict]
    )


def _cells(found: Findings, values: Any) -> list[str]:
    cells = []
    for _, name, power, beside in COLUMNS:
        if name in ("beta/mean", "g/mean") and found.tokens is None:
            cells.append("")  # a rule without a write strength
            continue
        text = number(values, name, power)
        cells.append(f"{text} ({number(values, beside, 1)})" if beside and text else text)
    return cells


def number(values: Any, name: str, power: int) -> str:
    """Return a reported value to a power as text, to two or three digits; "" if it is NaN."""
    value = float(values[name]) ** power
    if value != value:
        return ""
    return f"{value:.2f}" if 0.01 <= value < 100 else f"{value:.3g}"


def _held(found: Findings, count: Tensor) -> str:
    return f"{'≥ ' if int(count) >= 2 * found.layer.d_dot else ''}{int(count)}"
