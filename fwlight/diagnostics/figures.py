"""Figures of what layers do: layers in shades of one scale, heads as columns of heat maps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fwlight.diagnostics.diagnose import Diagnosis
from fwlight.diagnostics.statistics import LINEAR_EDGES, LOG_EDGES, OCTAVES, Statistics
from fwlight.diagnostics.verdict import HEALTHY, LIMIT, OVER_CAPACITY, RULE_LIMITED, UNUSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[str, Tensor]
COLOURS = {HEALTHY: "#2a9d6f", RULE_LIMITED: "#e0a52e", OVER_CAPACITY: "#c8453b", UNUSED: "#b9bec4"}
_STARTS = [0, *(2**i for i in range(OCTAVES - 1))]
"""The first position or age of every octave."""


def norms_figure(layers: Mapping[str, Values]) -> "Figure":
    """Draw the growth of the state by position, and norms and ranks by layer and head.

    Args:
        layers: Reported values of the part "norms", by layer.
    """
    figure, axes = _figure(layers, columns=4)
    curves = {name: values["growth/frobenius"].nanmean(0) for name, values in layers.items()}
    _curves(axes[0], curves, "Frobenius norm while writing", "positions written")
    for ax, key, title in (
        (axes[1], "frobenius/mean", "Frobenius norm of the last state"),
        (axes[2], "effective_rank/mean", "effective rank of the last state"),
        (axes[3], "change/mean", "norm of a write"),
    ):
        _heads(ax, {name: values[key] for name, values in layers.items()}, title)
    return figure


def capacity_figure(layers: Mapping[str, Diagnosis]) -> "Figure":
    """Draw verdicts by layer and head, and recall by age and by number of different keys.

    Args:
        layers: Diagnoses with the part "capacity", by layer.
    """
    values = {name: diagnosis.values for name, diagnosis in layers.items()}
    figure, axes = _figure(layers, columns=4)
    _verdicts(axes[0], {name: diagnosis.verdicts for name, diagnosis in layers.items()})
    _heads(axes[1], {x: y["load/mean"] for x, y in values.items()}, "load: different keys / d_dot")
    for ax, axis, label in (
        (axes[2], "age", "age of the association in positions"),
        (axes[3], "keys", "number of different keys"),
    ):
        curves = {x: y[f"last/{axis}/scaled_error"].square().nanmean(0) for x, y in values.items()}
        _curves(ax, curves, "error of recall (squared, scaled)", label)
        ax.axhline(LIMIT, color="0.4", linewidth=1, linestyle=":")
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
    return figure


def recall_figure(layers: Mapping[str, Values]) -> "Figure":
    """Draw what is still known: last writes, superseded ones, and the model's own queries.

    Args:
        layers: Reported values of the part "capacity", by layer.
    """
    figure, axes = _figure(layers, columns=4)
    age = "age of the association in positions"
    for ax, quantity, square, title in (
        (axes[0], "last/age/identified", False, "last writes identified"),
        (axes[1], "superseded/age/identified", False, "superseded writes identified"),
        (axes[2], "queries/age/identified", False, "own queries: nearest key's value"),
        (axes[3], "queries/age/scaled_error", True, "own queries: error (squared, scaled)"),
    ):
        found = {x: y[quantity] for x, y in layers.items() if quantity in y}
        if not found:
            ax.set_axis_off()
            continue
        curves = {x: (y.square() if square else y).nanmean(0) for x, y in found.items()}
        _curves(ax, curves, title, age)
        ax.set_ylim(0, 1.03 if not square else max(1.0, ax.get_ylim()[1]))
        if not square:
            chance = [
                y[quantity.replace("identified", "chance")].nanmean() for y in layers.values()
            ]
            level = float(torch.stack(chance).nanmean())
            ax.axhline(level, color="0.4", linewidth=1, linestyle=":")
    return figure


def limits_figure(capacity: Mapping[str, Tensor], d_dot: int) -> "Figure":
    """Draw the measured capacity of every head under its ceiling d_dot.

    Args:
        capacity: Numbers of keys by head, by layer.
        d_dot: Size of the features.
    """
    figure, (ax,) = _figure(capacity, columns=1)
    for i, counts in enumerate(capacity.values()):
        ax.scatter([i] * len(counts), counts.tolist(), s=14, color="#2f6db3", alpha=0.7)
        ax.plot([i - 0.25, i + 0.25], [float(counts.double().median())] * 2, color="0.2")
    ax.axhline(d_dot, color="#c8453b", linewidth=1, linestyle="--")
    ax.text(0, d_dot, f" d_dot = {d_dot}", fontsize=7, color="#c8453b", va="bottom")
    ax.set_xticks(range(len(capacity)), list(capacity), rotation=30 if len(capacity) > 4 else 0)
    ax.set_ylim(0, 1.15 * max(d_dot, max(int(x.max()) for x in capacity.values())))
    ax.set_title("measured capacity of every head, in keys", fontsize=8)
    return figure


def beta_figure(layers: Mapping[str, Values], statistics: Mapping[str, Statistics]) -> "Figure":
    """Draw beta by position, and how beta and g = beta |k|^2 are distributed.

    Args:
        layers: Reported values of the part "beta", by layer.
        statistics: What they were made of.
    """
    figure, axes = _figure(layers, columns=4)
    curves = {name: values["beta/position_mean"].nanmean(0) for name, values in layers.items()}
    _curves(axes[0], curves, "mean beta by position", "position")
    _heads(axes[1], {x: y["beta/mean"] for x, y in layers.items()}, "mean beta")
    for ax, name, edges in ((axes[2], "beta", LINEAR_EDGES), (axes[3], "g", LOG_EDGES)):
        found = {x: statistics[x].sums[f"{name}/histogram"].sum(0) for x in layers}
        _histograms(ax, found, edges, "beta" if name == "beta" else "g = beta |k|²")
    return figure


def _figure(layers: Mapping[str, Any], *, columns: int) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.figure import Figure  # takes a third of a second to load

    height = 2.3 + 0.12 * max(0, len(layers) - 4)
    figure = Figure(figsize=(2.8 * columns, height), dpi=105, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(ax: "Axes", curves: Mapping[str, Tensor], title: str, label: str) -> None:
    """Draw one line a layer over octaves, from light (the first layer) to dark."""
    import matplotlib

    shades = matplotlib.colormaps["viridis_r"]
    for i, (name, y) in enumerate(curves.items()):
        seen = y.isfinite().nonzero().flatten().tolist()
        shade = shades(0.15 + 0.8 * i / max(1, len(curves) - 1))
        ax.plot(seen, y[seen].tolist(), color=shade, linewidth=1.6, marker="o", ms=2.5, label=name)
    last = max(
        (y.isfinite().nonzero().max() for y in curves.values() if y.isfinite().any()), default=0
    )
    ticks = list(range(0, int(last) + 1, 2 if last > 8 else 1))
    ax.set_xticks(ticks, [str(_STARTS[i]) for i in ticks])
    ax.set_title(title, fontsize=8)
    ax.set_xlabel(label, fontsize=7)
    ax.set_ylim(bottom=0)
    if len(curves) > 1:
        ax.legend(fontsize=6, frameon=False, ncols=1 + len(curves) // 7)


def _heads(ax: "Axes", layers: Mapping[str, Tensor], title: str) -> None:
    """Draw a heat map of layers by heads, the values written in where there is room."""
    widest = max(len(x) for x in layers.values())
    table = torch.full((len(layers), widest), torch.nan)
    for i, x in enumerate(layers.values()):
        table[i, : len(x)] = x
    high = float(table.nan_to_num(0.0).max())
    image = ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=high or 1.0)
    ax.figure.colorbar(image, ax=ax).ax.tick_params(labelsize=6)
    if table.numel() <= 64:
        for i, j in table.isfinite().nonzero().tolist():
            value = float(table[i, j])
            dark = value > 0.55 * high
            text = f"{value:.2g}" if value < 100 else f"{value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
    _layer_rows(ax, list(layers), title)


def _verdicts(ax: "Axes", layers: Mapping[str, Sequence[str]]) -> None:
    from matplotlib.patches import Patch, Rectangle

    for i, verdicts in enumerate(layers.values()):
        for j, verdict in enumerate(verdicts):
            corner = (j - 0.45, i - 0.4)
            ax.add_patch(Rectangle(corner, 0.9, 0.8, color=COLOURS[verdict], linewidth=0))
    ax.set_xlim(-0.5, max(len(x) for x in layers.values()) - 0.5)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    given = [x for x in COLOURS if any(x in verdicts for verdicts in layers.values())]
    patches = [Patch(color=COLOURS[x], label=x) for x in given]
    ax.legend(
        handles=patches, fontsize=6, frameon=False, ncols=3, loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
    )  # fmt: skip
    _layer_rows(ax, list(layers), "verdict")


def _histograms(ax: "Axes", layers: Mapping[str, Tensor], edges: Tensor, label: str) -> None:
    """Draw each layer's share of writes by bin; logarithmic bins are cut to those in use."""
    import matplotlib

    shades = matplotlib.colormaps["viridis_r"]
    linear = bool(edges[0] == 0)
    every = 10 if linear else 8  # fewer, wider bins: readable at this size
    low, high = float(edges[-1]), float(edges[0])
    for i, (name, histogram) in enumerate(layers.items()):
        total = float(histogram.sum())
        if not total:
            continue
        share = histogram[1:-1].view(-1, every).sum(1) / total
        left = edges[:-1:every]
        used = share.nonzero().flatten()
        if len(used):
            low, high = (
                min(low, float(left[used[0]])),
                max(high, float(edges[every * (used[-1] + 1)])),
            )
        shade = shades(0.15 + 0.8 * i / max(1, len(layers) - 1))
        bounds = edges[::every].tolist()
        ax.stairs(share.tolist(), bounds, color=shade, linewidth=1.4, label=name)
    if not linear:
        ax.set_xscale("log")
        ax.minorticks_off()
    if low < high:
        ax.set_xlim((0, 1.02 if high <= 1.02 else high) if linear else (low / 10, 10 * high))
    ax.set_ylim(bottom=0)
    ax.set_title(f"share of writes by {label}", fontsize=8)
    ax.set_xlabel(label, fontsize=7)


def _layer_rows(ax: "Axes", names: Sequence[str], title: str) -> None:
    n_heads = round(ax.get_xlim()[1] + 0.5)
    ax.set_xticks(range(0, n_heads, 1 + n_heads // 17))
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("head", fontsize=7)
    ax.set_title(title, fontsize=8)
