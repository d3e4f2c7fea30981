"""Pictures of what a classifier bears."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwlight.robustness.attacks import METHODS
from fwlight.robustness.corruptions import CORRUPTIONS, SEVERITIES
from fwlight.robustness.measures import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"sign": "#c8453b", "adam": "#e0a52e", "random": "#8b949e"}


def corruptions_figure(found: Measured) -> "Figure":
    """Draw one image in all corruptions, and the errors beside it."""
    figure, (left, right) = _axes(2, width=11.5, height=4.6, widths=(1.25, 1))
    names = list(CORRUPTIONS)
    rows = [_side_by_side(found.examples[name]) for name in names]
    left.imshow(_shown(torch.cat(rows, dim=-2)), cmap="gray", vmin=0, vmax=1, aspect="auto")
    h, w = (n + 1 for n in found.examples[names[0]].shape[-2:])
    left.set_xticks(
        [w * (i + 0.5) - 1 for i in range(1 + len(SEVERITIES))], ["clean", *map(str, SEVERITIES)]
    )
    left.set_yticks([h * (i + 0.5) - 1 for i in range(len(names))], names)
    left.set_title("a test image, by severity", fontsize=9)
    errors = [list(found.of("corruption", name).values()) for name in names]
    high = max(0.3, *map(max, errors))
    right.imshow(errors, cmap="Reds", vmin=0, vmax=high, aspect="auto")
    for i, row in enumerate(errors):
        for j, value in enumerate(row):
            colour = "w" if value > 0.6 * high else "k"
            right.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    right.set_xticks(range(len(SEVERITIES)), list(map(str, SEVERITIES)))
    right.set_yticks(range(len(names)), [])
    clean = found.of("clean", "error")[0]
    right.set_title(f"error by severity (clean: {clean:.3f})", fontsize=9)
    return figure


def curves_figure(found: Measured) -> "Figure":
    """Draw errors by the size of a hole and of an attack."""
    figure, axes = _axes(2, width=8.5, height=2.9)
    holes = {**found.of("clean", "error"), **found.of("hole", "error")}
    axes[0].plot(list(holes), list(holes.values()), marker="o", ms=3, color="#2f6db3")
    for method in METHODS:
        attack = found.of("pgd", method)
        curve = list(attack), list(attack.values())
        axes[1].plot(*curve, marker="o", ms=3, color=COLOURS[method], label=method)
    axes[0].set_title("error with a hole of a share of the area", fontsize=9)
    axes[1].set_title("error under 10 steps of an attack, by eps", fontsize=9)
    axes[1].set_xscale("log")
    axes[1].legend(fontsize=7, frameon=False)
    for ax in axes:
        ax.set_ylim(0, 1.02)
    return figure


def frequencies_figure(found: Measured) -> "Figure":
    """Draw the errors by frequency of an added wave, and the spectrum of the smallest changes."""
    assert found.waves is not None
    assert found.spectrum is not None
    figure, axes = _axes(2, width=8.5, height=3.3)
    h, w = found.waves.shape
    middle = torch.fft.fftshift(found.waves)
    edges = (-(w // 2) - 0.5, (w - 1) // 2 + 0.5, (h - 1) // 2 + 0.5, -(h // 2) - 0.5)
    one = axes[0].imshow(middle, cmap="Reds", vmin=0, extent=edges)
    axes[0].set_title("error with a wave added, by its frequency", fontsize=9)
    two = axes[1].imshow(found.spectrum, cmap="Purples", vmin=0)
    axes[1].set_title("energy of the smallest changes, by frequency (DCT)", fontsize=9)
    for ax, drawn in zip(axes, (one, two), strict=True):
        figure.colorbar(drawn, ax=ax).ax.tick_params(labelsize=7)
    return figure


def smallest_figure(found: Measured) -> "Figure":
    """Draw images, the smallest changes that deceive the network, and both together."""
    clean, changes = found.examples["clean"], found.examples["smallest"]
    figure, axes = _axes(3, width=8.5, height=0.9)
    high = float(changes.abs().max()) or 1.0
    for ax, images, title in zip(
        axes,
        (clean, 0.5 + 0.5 * changes / high, (clean + changes).clamp(0, 1)),
        ("images", f"smallest changes (grey: 0, white: {high:.2f})", "together: another class"),
        strict=True,
    ):
        ax.imshow(_shown(_side_by_side(images)), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def _side_by_side(images: Tensor) -> Tensor:
    """Return images in a row `[c, h + 1, n (w + 1)]`, white between them."""
    return torch.cat(list(F.pad(images, (0, 1, 0, 1), value=1.0)), dim=-1)


def _shown(image: Tensor) -> Any:
    """Return `[c, h, w]` as matplotlib has it."""
    return image[0] if len(image) == 1 else image.movedim(0, -1)


def _axes(
    n: int,
    *,
    width: int | float,
    height: int | float,
    widths: Sequence[int | float] | None = None,
) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure  # takes a third of a second to load

    figure = Figure(figsize=(width, height), dpi=105, layout="constrained")
    axes = figure.subplots(1, n, width_ratios=widths)
    for ax in axes:
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
