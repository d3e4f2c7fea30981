"""How strongly the memory writes: beta, and the share g = beta |k|^2 that a write replaces."""

import sys
from typing import Any, ClassVar

from lightning import LightningModule, Trainer

from callbacks.watching import Part
from fwlight.diagnostics import Statistics, Written, merge
from fwlight.diagnostics.beta import (
    TokenBeta,
    beta_statistics,
    finalise_tokens,
    token_statistics,
)
from fwlight.diagnostics.figures import beta_figure
from fwlight.diagnostics.layers import Layer
from fwlight.training.module import TrainingModule

SUMMARY = ("mean", "std", "p5", "p50", "p95")


class Beta(Part):
    """Logs `beta/<layer>/...` of memories with a write strength, all heads pooled.

    At validations and at the end a text table shows the tokens written with the highest and the
    lowest mean beta since the one before. Writes with g of at least 2, which make what is stored
    grow, are warned of once.

    Args:
        every_n_steps: As of `Part`.
        sequences: As of `Part`.
        tokens: Rows of each half of the table; 0 for no table.
        min_count: Occurrences below which a token is left out.

    Raises:
        ValueError: If a number is out of range.
    """

    tag = "beta"
    names: ClassVar = {
        **{f"{x}_{y}": f"{x}/{y}" for x in ("beta", "g") for y in SUMMARY},
        **{f"beta_{y}": f"beta/{y}" for y in ("below_0.05", "above_0.95")},
        **{f"g_{y}": f"g/{y}" for y in ("below_0.05", "near_1", "above_1", "from_2")},
    }
    main: ClassVar = ("beta_p50",)
    charts: ClassVar = {
        "beta": "beta_(p5|p50|p95)",
        "g = beta |k|^2": "g_(p5|p50|p95)",
        "shares of writes": "(beta_below_0.05|beta_above_0.95|g_above_1|g_from_2)",
    }

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
        self._warned = False
        self._counts: dict[Layer, Statistics] = {}

    def watches(self, layer: Layer) -> bool:
        """Whether a layer has a write strength."""
        return layer.memory.has_beta

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers, and begin a table."""
        self._counts = {}
        super().on_fit_start(trainer, pl_module)

    def measure(self, layer: Layer, seen: Written) -> Statistics:
        """Return the statistics of beta and g, by position and by token."""
        found = beta_statistics(seen.k, seen.beta, padding_mask=seen.padding_mask)
        if not self.tokens or not layer.n_types or seen.tokens is None:
            return found
        return merge(found, token_statistics(seen, n_types=layer.n_types))

    def take(self, trainer: Trainer, found: dict[Layer, Statistics]) -> None:
        """Add the tokens up, and warn of writes that expand."""
        if self.tokens:
            for layer, statistics in found.items():
                if not layer.n_types:
                    continue
                counts = {x: statistics.sums.pop(x) for x in ("tokens/count", "tokens/sum")}
                before = [self._counts[layer]] if layer in self._counts else []
                self._counts[layer] = merge(*before, Statistics(counts, {}))
        super().take(trainer, found)
        names = [x.name for x, y in found.items() if float(y.sums["g/from_2"].sum()) > 0]
        if names and not self._warned and trainer.is_global_zero:
            self._warned = True
            print(
                f"warning: step {trainer.global_step}: writes with g = beta |k|^2 of at least 2 in "
                f"{', '.join(names)}: what is stored under their keys grows; model.key_norm=l2 "
                "or model.beta_max=1 prevents that",
                file=sys.stderr,
                flush=True,
            )

    def figure(self) -> Any:
        """Return histograms by head, and beta by position."""
        return beta_figure(self.latest)

    def draw_more(self, trainer: Trainer, module: TrainingModule) -> None:
        """Show the table of tokens, and begin a new one."""
        # Lightning sets it where pyright does not see it.
        decode = getattr(trainer.datamodule, "decode", None)  # pyright: ignore[reportAttributeAccessIssue]
        for layer, statistics in self._counts.items():
            sides = finalise_tokens(statistics, self.tokens, min_count=self.min_count)
            module.log_text(f"beta/{layer.name}/tokens", _table(sides, decode), self.seen_at)
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
