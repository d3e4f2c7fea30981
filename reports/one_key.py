"""One key of a sweep against the metric that its runs are judged by: FOLDER/sweep.png."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from fwlight.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 20
"""Largest over smallest value from which on an axis is logarithmic."""


def report(folder: Path, key: str, runs: Sequence[tuple[str, Run]]) -> str | None:
    """Draw the runs that have a result, if they have two values of the key at least.

    Args:
        folder: The sweep's.
        key: What was swept.
        runs: Its value, as typed, and the run.

    Returns:
        A line that says where the figure is, or why there is none; None without two results.
    """
    metric = metric_of([run for _, run in runs])
    drawn = [(text, run.metrics[metric]) for text, run in runs if metric in run.metrics]
    if len({text for text, _ in drawn}) < 2:
        return None
    path = folder / "sweep.png"
    try:
        figure = draw(key, metric, drawn)
    except ModuleNotFoundError:
        return f"{path} is not drawn: it needs matplotlib (pip install 'fwlight[plots]')"
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return f"{metric} against {key}: {path}"


def metric_of(runs: Sequence[Run]) -> str:
    """Return the best monitored value; of a loss the perplexity where all have one."""
    monitor = runs[0].monitor
    ended = [run for run in runs if run.metrics]
    perplexity = monitor == "loss" and ended and all("val/best_ppl" in x.metrics for x in ended)
    return "val/best_ppl" if perplexity else f"val/best_{monitor}"


def draw(key: str, metric: str, values: Sequence[tuple[str, float]]) -> "Figure":
    """Return the figure: every run a point, a line through the means of equal values.

    Args:
        key: What was swept.
        metric: Its name.
        values: Value of the key, as typed, and of the metric.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(text for text, _ in values))
    numbers = _numbers(names)
    places = dict(zip(names, numbers or range(len(names)), strict=True))
    figure = Figure(figsize=(max(4.8, 1.2 + 0.75 * len(names) * (not numbers)), 3.4))
    panel = figure.subplots()
    panel.scatter([places[text] for text, _ in values], [y for _, y in values], s=18, alpha=0.7)
    order = sorted(names, key=places.__getitem__)
    means = [mean(y for text, y in values if text == name) for name in order]
    panel.plot(
        [places[name] for name in order],
        means,
        linestyle="-" if numbers else "none",
        marker="_",
        markersize=12,
    )
    if not numbers:
        panel.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
    elif min(numbers) > 0 and max(numbers) > _WIDE * min(numbers):
        panel.set_xscale("log")
    panel.set(xlabel=key, ylabel=metric)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _numbers(texts: Sequence[str]) -> list[float]:
    """Return what the texts are as numbers, nothing if one is none."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return []
