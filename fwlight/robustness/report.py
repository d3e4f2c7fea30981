"""The page of `action=robustness`, pictures first."""

import html
import math
from collections.abc import Sequence

from fwlight.pages import image, page, table
from fwlight.robustness.attacks import METHODS
from fwlight.robustness.corruptions import CORRUPTIONS, SEVERITIES
from fwlight.robustness.figures import (
    corruptions_figure,
    curves_figure,
    frequencies_figure,
    smallest_figure,
)
from fwlight.robustness.measures import WAVE, Measured, Row, mean_error, relative_errors


def robustness_page(
    found: Measured,
    *,
    against: tuple[str, Sequence[Row]] | None,
    title: str,
    of: str,
    configuration: str,
) -> str:
    """Return the page as text.

    Args:
        found: What was measured.
        against: A baseline's name and rows.
        title: What was looked at.
        of: On what, in words.
        configuration: Text of the run's configuration.
    """
    h, w = found.examples["clean"].shape[-2:]
    relative = None if against is None else relative_errors(found.rows, against[1])
    scaled = (
        ""
        if (h, w) == (32, 32)
        else f" The lengths of blurs, in pixels of 32 x 32, are scaled to "
        f"{h} x {w}; that over which glass moves pixels is at least one, so it does more here."
    )
    parts = [
        _summary(found, None if against is None else against[0], relative),
        "<h2>Corruptions</h2>",
        image(corruptions_figure(found)),
        f"<p>Those of CIFAR-10-C (Hendrycks and Dietterich 2019), five severities.{scaled}</p>",
        "<h2>Holes and attacks</h2>",
        image(curves_figure(found)),
        "<p>A hole is a square with the mean colour of its image. sign: steps by the sign of the "
        "gradient; adam: steps of Adam (Paul and Chen 2022); random: no attack, each value moved "
        "up or down by eps.</p>",
        "<h2>Frequencies</h2>",
        image(frequencies_figure(found)),
        f"<p>Left: a wave of root mean square {WAVE} is added (Yin et al. 2019); frequency 0 is in "
        "the middle. Right: the smallest changes are DeepFool's; frequency 0 is top left.</p>",
        image(smallest_figure(found)),
        "<h2>Numbers</h2>",
        _numbers(found, relative),
    ]
    return page(parts, title=title, of=of, configuration=configuration)


def _summary(found: Measured, name: str | None, relative: dict[str, float] | None) -> str:
    smallest = {kind: found.of("smallest", kind)[0] for kind in ("median_norm", "low_share")}
    rows = [
        ("error on clean images", found.of("clean", "error")[0]),
        ("mean error over corruptions and severities", mean_error(found.rows)),
        ("median L2 norm of the smallest change", smallest["median_norm"]),
        ("share of its energy in low frequencies", smallest["low_share"]),
    ]
    if relative is not None:
        known = [value for value in relative.values() if not math.isnan(value)]
        mean = sum(known) / len(known) if len(known) == len(relative) else math.nan
        rows.insert(2, (f"mCE against {name}", mean))
    if gap := found.of("capacity", "log10_gap"):
        rows.append(("log10 of what norms let errors grow by (above 0: nothing said)", gap[0]))
    return table(["", "value"], [(html.escape(text), _number(value)) for text, value in rows])


def _numbers(found: Measured, relative: dict[str, float] | None) -> str:
    heading = ["corruption", *(f"severity {x}" for x in SEVERITIES), "mean"]
    rows = []
    for kind in CORRUPTIONS:
        errors = list(found.of("corruption", kind).values())
        cells = [kind, *map(_number, errors), _number(sum(errors) / len(errors))]
        rows.append(cells if relative is None else [*cells, _number(relative[kind])])
    text = table(heading if relative is None else [*heading, "CE"], rows)
    holes = found.of("hole", "error")
    text += table(["hole", *(f"{x:g}" for x in holes)], [["error", *map(_number, holes.values())]])
    levels = found.of("pgd", METHODS[0])
    attacks = [[x, *map(_number, found.of("pgd", x).values())] for x in METHODS]
    return text + table(["eps", *(f"{x:g}" for x in levels)], attacks)


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.3f}"
