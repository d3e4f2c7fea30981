"""How strongly the memory writes: beta, and the share g = beta |k|^2 that a write replaces."""

import sys
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer

from callbacks.watching import LayerWatcher, pooled_values
from fwlight.diagnostics import (
    Statistics,
    TokenBeta,
    finalise_tokens,
    merge,
    token_statistics,
)
from fwlight.diagnostics.figures import beta_figure
from fwlight.diagnostics.layers import Layer, Sequences, Watcher
from fwlight.training.module import TrainingModule

NAMES = {
    **{f"{x}_{y}": f"{x}/{y}" for x in ("beta", "g") for y in ("mean", "std", "p5", "p50", "p95")},
    "beta_below_0.05": "beta/below_0.05",
    "beta_above_0.95": "beta/above_0.95",
    "g_below_0.05": "g/below_0.05",
    "g_near_1": "g/near_1",
    "g_above_1": "g/above_1",
    "g_from_2": "g/from_2",
}
"""Name of a scalar -> reported value of `fwlight.diagnostics`."""


class Beta(LayerWatcher):
    """Logs `beta/<layer>/...` of memories with a write strength, all heads pooled.

    At validations and at the end a text table shows the tokens written with the highest and the
    lowest mean beta since the one before. Writes with g of at least 2, which make what is stored
    grow, are warned of once.

    Args:
        every_n_steps: Steps between two looks.
        sequences: How many of the batch over all processes; None is all.
        tokens: Rows of each half of the table; 0 for no table.
        min_count: Occurrences below which a token is left out.

    Raises:
        ValueError: If a number is out of range.
    """

    tag = "beta"
    parts = ("beta",)

    def __init__(
        self,
        *,
        every_n_steps: int = 200,
        sequences: int | None = 4,
        tokens: int = 15,
        min_count: int = 3,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, sequences=sequences)
        if tokens < 0 or min_count < 1:
            raise ValueError(f"tokens={tokens} must be at least 0, min_count={min_count} 1")
        self.tokens, self.min_count = tokens, min_count
        self._n_types = 0
        self._warned = False
        self._counts: dict[str, Statistics] = {}

    def watches(self, layer: Layer) -> bool:
        """Whether a layer has a write strength."""
        return layer.memory.has_beta

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers."""
        embedding = cast(Any, cast(TrainingModule, pl_module).network).embedding
        self._n_types, self._counts = embedding.num_embeddings, {}
        super().on_fit_start(trainer, pl_module)

    def empty(self, layer: Layer) -> Statistics:
        """Return the statistics of nothing."""
        nothing = torch.zeros(0, 1, dtype=torch.long)
        beta = torch.zeros(0, layer.n_heads, 1)
        return merge(
            super().empty(layer),
            token_statistics(beta, nothing, n_types=self._n_types),
        )

    def measure(self, layer: Layer, watcher: Watcher, of: Sequences) -> Statistics:
        """Return the statistics of beta and g, by position and by token."""
        found = [super().measure(layer, watcher, of)]
        for writes in watcher.writes if self.tokens else ():
            mask, beta = of.padding_mask, writes.beta
            assert beta is not None
            found.append(
                token_statistics(beta, of.tokens, n_types=self._n_types, padding_mask=mask)
            )
        return merge(*found)

    def look(self, trainer: Trainer, module: TrainingModule, batch: Any) -> None:
        """Look; add the tokens up, and warn of writes that expand."""
        super().look(trainer, module, batch)
        for layer, statistics in self.latest.items():
            sums = {x: y for x, y in statistics.sums.items() if x.startswith("tokens/")}
            parts = [self._counts[layer]] if layer in self._counts else []
            self._counts[layer] = merge(*parts, Statistics(sums, {}))
            self.latest[layer] = Statistics(
                {x: y for x, y in statistics.sums.items() if x not in sums}, statistics.maxima
            )
        expanding = [x for x, y in self.latest.items() if float(y.sums["g/from_2"].sum()) > 0]
        if expanding and not self._warned and trainer.is_global_zero:
            self._warned = True
            print(
                f"warning: step {trainer.global_step}: writes with g = beta |k|^2 of at least 2 in "
                f"{', '.join(expanding)}: what is stored under their keys grows; model.key_norm=l2 "
                "or model.beta_max=1 prevents that",
                file=sys.stderr,
                flush=True,
            )

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return the pooled values."""
        values = pooled_values(layer, statistics)
        return {name: float(values[source]) for name, source in NAMES.items()}

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return the charts of the dashboard."""
        where = f"{self.tag}/{layer.name}/"
        return {
            "beta": [f"{where}beta_(p5|p50|p95)$"],
            "g = beta |k|^2": [f"{where}g_(p5|p50|p95)$"],
            "shares of writes": [f"{where}(beta_below_0.05|beta_above_0.95|g_above_1|g_from_2)$"],
        }

    def figure(self) -> Any:
        """Return histograms by head, and beta by position."""
        values = {name: x.values for name, x in self.diagnoses().items()}
        return beta_figure(values, self.latest)

    def draw_more(self, trainer: Trainer, module: TrainingModule) -> None:
        """Show the table of tokens, and begin a new one."""
        # Lightning sets it where pyright does not see it.
        decode = getattr(trainer.datamodule, "decode", None)  # pyright: ignore[reportAttributeAccessIssue]
        for layer, statistics in self._counts.items() if self.tokens else ():
            sides = finalise_tokens(statistics, self.tokens, min_count=self.min_count)
            module.log_text(f"beta/{layer}/tokens", _table(sides, decode), self._seen_at)
        self._counts = {}


def _table(sides: tuple[TokenBeta, TokenBeta], decode: Any) -> str:
    """Return the highest beside the lowest, one token a line."""
    columns = []
    for side in sides:
        names = [repr(decode([i]))[1:-1] if decode else str(i) for i in side.ids.tolist()]
        rows = zip(names, side.mean.tolist(), side.occurrences.tolist(), strict=True)
        columns.append([f"{name:<20} {mean:.3f} {int(n):>6}" for name, mean, n in rows])
    head = "    ".join(
        f"{f'{side} beta':<20} {'mean':>5} {'seen':>6}" for side in ("highest", "lowest")
    )
    return "\n".join([head, *(f"{a}    {b}" for a, b in zip(*columns, strict=True))])
