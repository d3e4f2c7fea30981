"""Two models on one page: what they are, lose, keep in memory, and what to change about each."""

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from fwlight.diagnostics.figures import beta_figure, capacity_figure, norms_figure, recall_figure
from fwlight.diagnostics.findings import Findings
from fwlight.diagnostics.interventions import Effects
from fwlight.diagnostics.kind import rules
from fwlight.diagnostics.losses import SequenceLosses, difference
from fwlight.diagnostics.report import chips, number
from fwlight.diagnostics.worth import Advice
from fwlight.diagnostics.worth import number as nats
from fwlight.diagnostics.worth_report import EXPLAINED, advice_list, effects_row
from fwlight.pages import page, panels, table

LETTERS = "AB"
COLUMNS = (("load", "load/mean", 1), ("E_opt", "best/error", 1))
COLUMNS += (("error of recall", "last/scaled_error", 2),)


class Side(NamedTuple):
    """One of the two."""

    name: str
    """Path of the checkpoint."""
    step: int | None
    parameters: int
    losses: SequenceLosses
    findings: Sequence[Findings]
    effects: Sequence[Effects]
    advice: Sequence[Advice]
    configuration: str

    @property
    def memories(self) -> list[Findings]:
        """What was found of its fast weights."""
        return [x for x in self.findings if not x.layer.is_softmax]


def comparison_page(sides: Sequence[Side], *, of: str) -> str:
    """Return the page as the text of an HTML file.

    Args:
        sides: Two.
        of: On what, in words.
    """
    parts = [_models(sides), *_advice(sides), *_worth(sides), *_held(sides), *_figures(sides)]
    lettered = zip(LETTERS, sides, strict=True)
    both = "\n".join(f"# {letter}: {x.name}\n{x.configuration}" for letter, x in lettered)
    title = " and ".join(side.name for side in sides)
    return page(parts, title=f"Comparison of {title}", of=of, configuration=both)


def _models(sides: Sequence[Side]) -> str:
    rows = {
        "checkpoint": [html.escape(x.name) for x in sides],
        "layers": [html.escape(rules(y.layer for y in x.findings)) for x in sides],
        "heads": [_listed(y.layer.n_heads for y in x.findings) for x in sides],
        "features": [_listed(y.layer.d_dot for y in x.memories) for x in sides],
        "parameters": [f"{x.parameters:,}" for x in sides],
        "step": ["" if x.step is None else f"{x.step:,}" for x in sides],
        "loss from an empty memory, nats per target": [nats(x.losses.mean) for x in sides],
    }
    text = table(["", *LETTERS], [[name, *cells] for name, cells in rows.items()])
    if (found := difference(sides[0].losses, sides[1].losses)) is not None:
        than = "less" if found[0] < 0 else "more"
        text += (
            f"<p>B loses {nats(abs(found[0]))} ± {nats(found[1])} nats per target {than} than A on "
            f"the same {len(sides[0].losses.nll)} sequences (standard error over them).</p>"
        )
    elif any(len(x.losses.nll) for x in sides):
        text += "<p>Their sequences differ: the two losses are of other targets.</p>"
    return text


def _advice(sides: Sequence[Side]) -> Iterator[str]:
    if not all(side.effects for side in sides):
        return
    lists = [
        f"<div><h3>{letter}</h3>{advice_list(side.effects, side.advice)}</div>"
        for letter, side in zip(LETTERS, sides, strict=True)
    ]
    yield f'<h2>What should be changed?</h2><div class="sides">{"".join(lists)}</div>'


def _worth(sides: Sequence[Side]) -> Iterator[str]:
    if not any(side.effects for side in sides):
        return
    found = [{x.layer.name: effects_row("", x.whole)[1:4] for x in side.effects} for side in sides]
    yield "<h2>What every memory is worth</h2>"
    yield _beside(found, ("verdict", "worth", "reaches"))
    yield f'<p class="of">{EXPLAINED}</p>'


def _held(sides: Sequence[Side]) -> Iterator[str]:
    found = [
        {
            x.layer.name: [
                chips(x.heads.verdicts),
                *(number(x.whole, name, power) for _, name, power in COLUMNS),
            ]
            for x in side.memories
        }
        for side in sides
    ]
    if any(found):
        yield "<h2>What the memories hold</h2>"
        yield _beside(found, ("heads", *(heading for heading, _, _ in COLUMNS)))


def _beside(found: Sequence[dict[str, list[str]]], heading: Sequence[str]) -> str:
    """Return a table of layers with the cells of both; a layer that one has not is empty there."""
    nothing = [""] * len(heading)
    names = _ordered(name for rows in found for name in rows)
    rows = [[html.escape(x), *(y for of in found for y in of.get(x, nothing))] for x in names]
    return table(["layer", *(f"{x}: {y}" for x in LETTERS for y in heading)], rows)


def _figures(sides: Sequence[Side]) -> Iterator[str]:
    strong = [[x for x in side.memories if x.tokens is not None] for side in sides]
    every = [side.memories for side in sides]
    for heading, figure, layers in (
        ("Capacity", capacity_figure, every),
        ("Recall", recall_figure, every),
        ("Fast weight norms", norms_figure, every),
        ("Write strengths", beta_figure, strong),
    ):
        if any(layers):
            yield f'<h2>{heading}</h2><div class="panels">{_pairs(figure, layers)}</div>'


def _pairs(figure: Callable[[Sequence[Any]], Any], layers: Sequence[Sequence[Findings]]) -> str:
    """Return the axes of both figures, A's beside B's."""
    drawn = [panels(figure(of)) if of else [] for of in layers]
    return "".join(
        '<div class="pair">'
        + "".join(
            f"<figure><figcaption>{letter}</figcaption>{image or 'nothing to show'}</figure>"
            for letter, image in zip(LETTERS, pair, strict=True)
        )
        + "</div>"
        for pair in zip_longest(*drawn)
    )


def _listed(found: Iterable[int]) -> str:
    return ", ".join(map(str, _ordered(found)))


def _ordered(found: Any) -> list[Any]:
    """Return what is there, once, in its order."""
    return list(dict.fromkeys(found))
