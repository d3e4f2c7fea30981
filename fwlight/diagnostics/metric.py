"""Statistics of layers over batches and processes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fwlight.diagnostics.statistics import Statistics

Layout = list[tuple[str, str, torch.Size]]


class LayerStatistics(Metric):
    """Adds the statistics of every layer over batches, and over processes when it is computed.

    All of them are two vectors, so that processes are joined by one SUM and one MAX collective,
    whatever the number of layers. Every process of the group must compute it, also one that has
    seen nothing.

    Args:
        empty: Of every layer the statistics of nothing, which name all there can be.
        process_group: The processes to join; None is all.
    """

    full_state_update = False
    sums: Tensor
    maxima: Tensor

    def __init__(self, empty: Mapping[str, Statistics], *, process_group: Any = None) -> None:
        super().__init__(process_group=process_group)
        self._sums_layout = _layout({layer: x.sums for layer, x in empty.items()})
        self._maxima_layout = _layout({layer: x.maxima for layer, x in empty.items()})
        n_sums, n_maxima = (
            sum(shape.numel() for _, _, shape in layout)
            for layout in (self._sums_layout, self._maxima_layout)
        )
        self.add_state("sums", torch.zeros(n_sums, dtype=torch.float64), dist_reduce_fx="sum")
        lowest = torch.full((n_maxima,), -torch.inf, dtype=torch.float64)
        self.add_state("maxima", lowest, dist_reduce_fx="max")

    def update(self, layers: Mapping[str, Statistics]) -> None:
        """Add one batch; layers and names that are missing have seen nothing."""
        sums = {layer: x.sums for layer, x in layers.items()}
        maxima = {layer: x.maxima for layer, x in layers.items()}
        self.sums = self.sums + _flat(sums, self._sums_layout, 0.0).to(self.sums)
        extrema = _flat(maxima, self._maxima_layout, -torch.inf).to(self.maxima)
        self.maxima = torch.maximum(self.maxima, extrema)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return both vectors over all batches of all processes."""
        return self.sums, self.maxima

    def layers(self) -> dict[str, Statistics]:
        """Return what `compute` does as the statistics of every layer, on the CPU.

        Apart from it, because the base class takes the dimensions of single numbers away.
        """
        flat_sums, flat_maxima = self.compute()
        sums = _nested(flat_sums.cpu().view(-1), self._sums_layout)
        maxima = _nested(flat_maxima.cpu().view(-1), self._maxima_layout)
        return {layer: Statistics(sums[layer], maxima.get(layer, {})) for layer in sums}

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None
    ) -> None:
        """Reduce instead of gathering, which is what the base class does state by state."""
        group = process_group or self.process_group
        self.sums, self.maxima = self.sums.clone(), self.maxima.clone()
        torch.distributed.all_reduce(self.sums, torch.distributed.ReduceOp.SUM, group=group)
        torch.distributed.all_reduce(self.maxima, torch.distributed.ReduceOp.MAX, group=group)


def _layout(layers: Mapping[str, Mapping[str, Tensor]]) -> Layout:
    return [(layer, name, x.shape) for layer, named in layers.items() for name, x in named.items()]


def _flat(layers: Mapping[str, Mapping[str, Tensor]], layout: Layout, nothing: float) -> Tensor:
    known = {(layer, name) for layer, name, _ in layout}
    strange = {(layer, name) for layer, named in layers.items() for name in named} - known
    if strange:
        raise ValueError(f"statistics that this metric was not made for: {sorted(strange)[0]}")
    parts = [torch.zeros(0, dtype=torch.float64)]
    for layer, name, shape in layout:
        x = layers.get(layer, {}).get(name)
        x = torch.full(shape, nothing, dtype=torch.float64) if x is None else x
        if x.shape != shape:
            raise ValueError(f"{layer} {name} has shape {tuple(x.shape)}, not {tuple(shape)}")
        parts.append(x.double().flatten().cpu())
    return torch.cat(parts)


def _nested(flat: Tensor, layout: Layout) -> dict[str, dict[str, Tensor]]:
    parts = flat.split([shape.numel() for _, _, shape in layout])
    layers: dict[str, dict[str, Tensor]] = {}
    for (layer, name, shape), part in zip(layout, parts, strict=True):
        layers.setdefault(layer, {})[name] = part.view(shape)
    return layers
