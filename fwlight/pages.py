"""HTML pages that need nothing else: style, tables, figures within."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; max-width: 1180px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.of { color: #5c6670; margin-top: 0; } img { width: 100%; height: auto; }
img.narrow { width: 32%; min-width: 300px; }
.panels { display: flex; flex-wrap: wrap; gap: 0.6rem; align-items: flex-start; }
.panels > img { flex: 1 1 250px; max-width: 380px; min-width: 0; }
.pair { flex: 1 1 520px; max-width: 100%; display: flex; flex-wrap: wrap; gap: 0.6rem; }
.pair figure { flex: 1 1 250px; max-width: 380px; margin: 0; }
.sides { display: flex; flex-wrap: wrap; gap: 0 2rem; } .sides > div { flex: 1 1 320px; }
table { border-collapse: collapse; font-size: 13px; } .wide { overflow-x: auto; }
th { text-align: right; vertical-align: bottom; font-weight: 600; padding: 3px 8px; }
td { text-align: right; padding: 3px 8px; border-top: 1px solid #e3e7ea; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.tokens th:nth-child(2), .tokens td:nth-child(2) { text-align: right; }
.chip { color: #fff; border-radius: 3px; padding: 1px 7px; margin-right: 4px; }
.tokens { display: flex; flex-wrap: wrap; gap: 2rem; } pre { background: #f4f6f7; padding: 1rem;
  overflow-x: auto; font-size: 12.5px; }
"""


def page(parts: Iterable[str], *, title: str, of: str, configuration: str) -> str:
    """Return a page as text.

    Args:
        parts: What it shows, as HTML.
        title: What was looked at.
        of: On what, in words.
        configuration: Text of the run's configuration, which is shown last.
    """
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="of">{html.escape(of)}</p>', *parts]
    body.append(
        f"<h2>Configuration</h2><details><summary>all keys</summary><pre>"
        f"{html.escape(configuration)}</pre></details>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are HTML, its heading is text."""
    head = "".join(f"<th>{html.escape(x)}</th>" for x in heading)
    body = "".join(f"<tr>{''.join(f'<td>{x}</td>' for x in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def chip(text: str, colour: str) -> str:
    """Return a word on a colour."""
    return f'<span class="chip" style="background:{colour}">{html.escape(text)}</span>'


def image(figure: Any, *, narrow: bool = False, **options: Any) -> str:
    """Return a figure of matplotlib's as an image that is part of the page.

    Args:
        figure: The figure.
        narrow: Whether it takes a third of the page's width.
        options: Of matplotlib's `savefig`.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="narrow"' if narrow else ""
    return f'<img{kind} alt="" src="data:image/svg+xml;base64,{data}">'


def panels(figure: Any) -> list[str]:
    """Return the axes of a figure as images of their own, which a narrow page can wrap.

    Axes that are switched off are left out.
    """
    bars = {ax: [x.colorbar.ax for x in ax.images if x.colorbar] for ax in figure.axes}
    beside = {bar for found in bars.values() for bar in found}
    found = []
    for ax in (x for x in figure.axes if x not in beside and x.axison):
        for other in figure.axes:
            other.set_visible(other is ax or other in bars[ax])
        found.append(image(figure, bbox_inches="tight", pad_inches=0.05))
    return found
