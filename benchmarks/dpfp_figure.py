"""A picture of DPFP: how it splits the plane into regions with features of their own.

    python -m benchmarks.dpfp_figure docs/images/dpfp.png

For d = 2 and nu = 1 (Schlag et al. 2021b, fig. 1): each of the four features is positive in one
quadrant and zero in the others, so that keys of different quadrants are orthogonal.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fwlight.feature_maps import DPFPFeatureMap


def draw() -> Figure:
    """Return the figure: one panel a feature, and the dot product with one key."""
    axis = torch.linspace(-1, 1, 201)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    feature_map = DPFPFeatureMap(nu=1)
    phi = feature_map(torch.stack((x, y), dim=-1))
    key = torch.tensor([0.7, 0.45])
    shown = [*phi.unbind(-1), phi @ feature_map(key)]
    titles = [f"$\\phi_{i + 1}(x)$" for i in range(4)] + ["$\\phi(x)\\cdot\\phi(k)$"]
    figure = Figure(figsize=(15, 3.4), layout="constrained")
    panels = figure.subplots(1, 5)
    for panel, values, title in zip(panels, shown, titles, strict=True):
        panel.imshow(values, origin="lower", extent=(-1, 1, -1, 1), cmap="viridis")
        panel.axhline(0, color="white", linewidth=0.8)
        panel.axvline(0, color="white", linewidth=0.8)
        panel.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    panels[-1].plot(*key.tolist(), "o", color="red", label="$k$")
    panels[-1].legend()
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.dpfp_figure FILE.png")
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(sys.argv[1], dpi=110)
