"""Figures of what layers do: layers in shades of one scale, heads as columns of heat maps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fwlight.diagnostics.layers import Found
from fwlight.diagnostics.statistics import LINEAR_EDGES, LOG_EDGES, OCTAVES
from fwlight.diagnostics.verdict import HEALTHY, LIMIT, OVER_CAPACITY, RULE_LIMITED, UNUSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {HEALTHY: "#2a9d6f", RULE_LIMITED: "#e0a52e", OVER_CAPACITY: "#c8453b", UNUSED: "#b9bec4"}
AGE = "age of the association in positions"
_STARTS = [0, *(2**i for i in range(OCTAVES - 1))]
"""The first position or age of every octave."""


def norms_figure(layers: Sequence[Found]) -> "Figure":
    """Draw the growth of the state by position, and norms and ranks by layer and head."""
    figure, axes = _figure(x.layer.name for x in layers)
    growth = _over_octaves(layers, "growth/frobenius")
    _curves(axes[0], growth, "Frobenius norm while writing", "positions written")
    _heads(axes[1], layers, "frobenius/mean", "Frobenius norm of the last state")
    _heads(axes[2], layers, "effective_rank/mean", "effective rank of the last state")
    _heads(axes[3], layers, "change/mean", "norm of a write")
    return figure


def capacity_figure(layers: Sequence[Found]) -> "Figure":
    """Draw verdicts by layer and head, and recall by age and by number of different keys."""
    figure, axes = _figure(x.layer.name for x in layers)
    _verdicts(axes[0], layers)
    _heads(axes[1], layers, "load/mean", "load: different keys / d_dot")
    for ax, axis, label in ((axes[2], "age", AGE), (axes[3], "keys", "number of different keys")):
        errors = _over_octaves(layers, f"last/{axis}/scaled_error", torch.square)
        _curves(ax, errors, "error of recall (squared, scaled)", label)
        ax.axhline(LIMIT, color="0.4", linewidth=1, linestyle=":")
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
    return figure


def recall_figure(layers: Sequence[Found]) -> "Figure":
    """Draw what is still known: last writes, superseded ones, and the model's own queries."""
    figure, axes = _figure(x.layer.name for x in layers)
    asked = [x for x in layers if "queries/age/identified" in x.heads.values]
    for ax, of, reads, title in (
        (axes[0], layers, "last", "last writes identified"),
        (axes[1], layers, "superseded", "superseded writes identified"),
        (axes[2], asked, "queries", "own queries: nearest key's value"),
    ):
        _curves(ax, _over_octaves(of, f"{reads}/age/identified"), title, AGE)
        ax.set_ylim(0, 1.03)
        chance = [x.heads.values[f"{reads}/age/chance"].nanmean() for x in of]
        if chance:
            level = float(torch.stack(chance).nanmean())
            ax.axhline(level, color="0.4", linewidth=1, linestyle=":")
    errors = _over_octaves(asked, "queries/age/scaled_error", torch.square)
    _curves(axes[3], errors, "own queries: error (squared, scaled)", AGE)
    axes[3].set_ylim(0, max(1.0, axes[3].get_ylim()[1]))
    for ax in () if asked else axes[2:]:
        ax.set_axis_off()
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


def beta_figure(layers: Sequence[Found]) -> "Figure":
    """Draw beta by position, and how beta and g = beta |k|^2 are distributed."""
    figure, axes = _figure(x.layer.name for x in layers)
    _curves(
        axes[0], _over_octaves(layers, "beta/position_mean"), "mean beta by position", "position"
    )
    _heads(axes[1], layers, "beta/mean", "mean beta")
    _histograms(axes[2], layers, "beta", LINEAR_EDGES, "beta")
    _histograms(axes[3], layers, "g", LOG_EDGES, "g = beta |k|²")
    return figure


def _figure(layers: Iterable[str], *, columns: int = 4) -> tuple["Figure", Sequence["Axes"]]:
    """Return axes side by side, with room for the names of layers on their left."""
    from matplotlib.figure import Figure  # takes a third of a second to load

    names = list(layers)
    # A constrained layout takes half of the time of a figure; a run ends with three.
    room = 0.3 + 0.058 * max(map(len, names))  # inches, as all here
    height, width = 2.3 + 0.12 * max(0, len(names) - 4), columns * (2.15 + room)
    figure = Figure(figsize=(width, height), dpi=105)
    axes = figure.subplots(
        1,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": room / width,
            "right": 1 - 0.2 / width,
            "bottom": 0.55 / height,
            "top": 1 - 0.28 / height,
            "wspace": columns * (room + 0.1) / (width - columns * (room + 0.1)),
        },
    )[0]
    for ax in axes:
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _over_octaves(
    layers: Sequence[Found], name: str, of: Callable[[Tensor], Tensor] = torch.clone
) -> dict[str, Tensor]:
    """Return the mean over heads of (a function of) a value that is known by octave, by layer."""
    return {x.layer.name: of(x.heads.values[name]).nanmean(0) for x in layers}


def _shade(i: int, n: int) -> tuple[float, ...]:
    """Return the colour of layer i of n, from light (the first layer) to dark."""
    import matplotlib

    return matplotlib.colormaps["viridis_r"](0.15 + 0.8 * i / max(1, n - 1))


def _curves(ax: "Axes", curves: Mapping[str, Tensor], title: str, label: str) -> None:
    """Draw one line a layer over octaves."""
    for i, (name, y) in enumerate(curves.items()):
        seen = y.isfinite().nonzero().flatten().tolist()
        shade = _shade(i, len(curves))
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


def _heads(ax: "Axes", layers: Sequence[Found], name: str, title: str) -> None:
    """Draw a heat map of a value by layers and heads, numbers written in where there is room."""
    rows = [x.heads.values[name] for x in layers]
    table = pad_sequence(rows, batch_first=True, padding_value=torch.nan).float()
    high = float(table.nan_to_num(0.0).max())
    image = ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=high or 1.0)
    ax.figure.colorbar(image, ax=ax).ax.tick_params(labelsize=6)
    if table.numel() <= 64:
        for i, j in table.isfinite().nonzero().tolist():
            value = float(table[i, j])
            dark = value > 0.55 * high
            text = f"{value:.2g}" if value < 100 else f"{value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
    _layer_rows(ax, layers, title)


def _verdicts(ax: "Axes", layers: Sequence[Found]) -> None:
    from matplotlib.patches import Patch, Rectangle

    rows = [x.heads.verdicts for x in layers]
    for i, verdicts in enumerate(rows):
        for j, verdict in enumerate(verdicts):
            corner = (j - 0.45, i - 0.4)
            ax.add_patch(Rectangle(corner, 0.9, 0.8, color=COLOURS[verdict], linewidth=0))
    ax.set_xlim(-0.5, max(map(len, rows)) - 0.5)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    given = [x for x in COLOURS if any(x in verdicts for verdicts in rows)]
    patches = [Patch(color=COLOURS[x], label=x) for x in given]
    ax.legend(
        handles=patches, fontsize=6, frameon=False, ncols=3, loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
    )  # fmt: skip
    _layer_rows(ax, layers, "verdict")


def _histograms(ax: "Axes", layers: Sequence[Found], name: str, edges: Tensor, label: str) -> None:
    """Draw each layer's share of writes by bin; logarithmic bins are cut to those in use."""
    linear = bool(edges[0] == 0)
    every = 10 if linear else 8  # fewer, wider bins: readable at this size
    low, high = float(edges[-1]), float(edges[0])
    for i, found in enumerate(layers):
        histogram = found.statistics.sums[f"{name}/histogram"].sum(0)
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
        bounds = edges[::every].tolist()
        ax.stairs(share.tolist(), bounds, color=_shade(i, len(layers)), linewidth=1.4)
    if not linear:
        ax.set_xscale("log")
        ax.minorticks_off()
    if low < high:
        ax.set_xlim((0, 1.02 if high <= 1.02 else high) if linear else (low / 10, 10 * high))
    ax.set_ylim(bottom=0)
    ax.set_title(f"share of writes by {label}", fontsize=8)
    ax.set_xlabel(label, fontsize=7)


def _layer_rows(ax: "Axes", layers: Sequence[Found], title: str) -> None:
    n_heads = round(ax.get_xlim()[1] + 0.5)
    ax.set_xticks(range(0, n_heads, 1 + n_heads // 17))
    ax.set_yticks(range(len(layers)), [x.layer.name for x in layers])
    ax.set_xlabel("head", fontsize=7)
    ax.set_title(title, fontsize=8)
