"""What the callbacks that watch layers share: when they look, at what, and over which processes."""

import time
from collections.abc import Collection
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from fwlight.diagnostics import Diagnosis, Statistics, finalise_diagnosis
from fwlight.diagnostics.diagnose import PARTS
from fwlight.diagnostics.layers import (
    Layer,
    Sequences,
    Watcher,
    empty_statistics,
    layer_statistics,
    memory_layers,
    pooled,
    sequences,
    watch_forward,
)
from fwlight.diagnostics.metric import LayerStatistics
from fwlight.lightning_internals import completes_update
from fwlight.training.module import TrainingModule

_FIRST_DRAWING = 0.4
"""Seconds that a drawing is taken to need before one was timed."""


class LayerWatcher(Callback):
    """Looks every so many steps at what the layers do with a few sequences of the current batch.

    A forward pass of its own, which leaves no trace, shows the layers after the step's update. The
    sequences are the same ones however many processes share the batch, and their statistics are
    added over processes before anything is made of them.

    Subclasses say which layers (`watches`), what is measured (`parts`, or `measure`) and which
    scalars follow (`scalars`, logged as `<tag>/<layer>/<name>`). They may draw (`figure`), which is
    done at the end, and at validations as far as that takes no more than 1 % of the time, and say
    in words (`describe`) how training ended.

    Args:
        every_n_steps: Steps between two looks; the last step always has one.
        sequences: How many of the batch over all processes, at least one each; None is all.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = ""
    parts: Collection[str] = PARTS
    """Of what `fwlight.diagnostics` measures of a fast weight memory."""

    def __init__(self, *, every_n_steps: int = 200, sequences: int | None = 4) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("sequences", sequences)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.every_n_steps, self.sequences = every_n_steps, sequences
        self.layers: list[Layer] = []
        self.latest: dict[str, Statistics] = {}
        """Of the newest look, by layer."""
        self._metric: LayerStatistics | None = None
        self._batch: Any = None
        self._seen_at = self._drawn_at = -1
        self._draw_after = 0.0

    # What subclasses say

    def watches(self, layer: Layer) -> bool:
        """Whether a layer is looked at; by default every fast weight memory is."""
        return not layer.is_softmax

    def empty(self, layer: Layer) -> Statistics:
        """Return the statistics of nothing, with every name that `measure` can return."""
        return empty_statistics(layer, parts=self.parts)

    def measure(self, layer: Layer, watcher: Watcher, of: Sequences) -> Statistics:
        """Return what a layer did with these sequences."""
        return layer_statistics(layer, watcher, of=of, parts=self.parts)

    def scalars(self, layer: Layer, statistics: Statistics) -> dict[str, float]:
        """Return what is logged of it."""
        raise NotImplementedError

    def charts(self, layer: Layer) -> dict[str, list[str]]:
        """Return which tags of a layer a dashboard shows together."""
        return {}

    def figure(self) -> Any:
        """Return a matplotlib figure of `latest`, or None."""
        return None

    def draw_more(self, trainer: Trainer, module: TrainingModule) -> None:
        """Show something else, when the figure is."""

    def describe(self, layer: Layer) -> str | None:
        """Return what the end of training says of a layer, or None."""
        return None

    # Lightning's hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers."""
        network = cast(TrainingModule, pl_module).network
        self.layers = [layer for layer in memory_layers(network) if self.watches(layer)]
        empty = {layer.name: self.empty(layer) for layer in self.layers}
        self._metric = LayerStatistics(empty).to(pl_module.device)
        self.latest, self._batch = {}, None
        self._seen_at = self._drawn_at = -1
        self._draw_after = time.monotonic() + 100 * _FIRST_DRAWING

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look where it is due, and log."""
        if not self.layers or not completes_update(trainer):
            return
        step, self._batch = trainer.global_step, batch
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        self.look(trainer, cast(TrainingModule, pl_module), batch)
        cast(TrainingModule, pl_module).record(self.tagged(), step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the newest look."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and time.monotonic() >= self._draw_after:
            self._draw(trainer, cast(TrainingModule, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more where the last step had none; draw, and say what was seen."""
        if self._batch is None:
            return
        if self._seen_at != trainer.global_step:
            self.look(trainer, cast(TrainingModule, pl_module), self._batch)
        self._batch = None
        self._draw(trainer, cast(TrainingModule, pl_module))
        lines = [(layer.name, self.describe(layer)) for layer in self.layers]
        for name, line in lines if trainer.is_global_zero else ():
            if line is not None:
                print(f"{name}: {line}", flush=True)

    def look(self, trainer: Trainer, module: TrainingModule, batch: Any) -> None:
        """Put what the layers do with a batch into `latest`; a collective on all processes."""
        assert self._metric is not None
        few = self._few(batch, trainer.world_size)

        def forward() -> None:
            with trainer.precision_plugin.forward_context():
                module(few)

        watchers = watch_forward(module.network, self.layers, forward)
        self._metric.reset()
        self._metric.update(
            {
                layer.name: self.measure(
                    layer, watchers[layer.name], sequences(layer, module.network, few)
                )
                for layer in self.layers
            }
        )
        self.latest = self._metric.layers()
        self._seen_at = trainer.global_step

    def diagnoses(self) -> dict[str, Diagnosis]:
        """Return what the newest look says of every fast weight memory, by head."""
        return {
            layer.name: finalise_diagnosis(self.latest[layer.name], layer.memory.d_dot)
            for layer in self.layers
        }

    def tagged(self) -> dict[str, float]:
        """Return the scalars of the newest look by tag."""
        return {
            f"{self.tag}/{layer.name}/{name}": value
            for layer in self.layers
            for name, value in self.scalars(layer, self.latest[layer.name]).items()
        }

    def _draw(self, trainer: Trainer, module: TrainingModule) -> None:
        if not trainer.is_global_zero or not self.latest or self._drawn_at == self._seen_at:
            return
        started = time.monotonic()
        figure = self.figure()
        if figure is not None:
            module.log_figure(self.tag, figure, self._seen_at)
        self.draw_more(trainer, module)
        now = time.monotonic()
        self._draw_after, self._drawn_at = now + 100 * (now - started), self._seen_at

    def _few(self, batch: Any, world_size: int) -> Any:
        """Return every so manieth sequence, the same ones for any number of processes."""
        n = next(len(x) for x in batch if isinstance(x, Tensor))
        stride = 1 if self.sequences is None else max(1, n * world_size // self.sequences)
        return type(batch)(*(x[::stride] if isinstance(x, Tensor) else x for x in batch))


def pooled_values(layer: Layer, statistics: Statistics) -> dict[str, Tensor]:
    """Return the reported values of a fast weight memory, all heads together."""
    return finalise_diagnosis(pooled(statistics), layer.memory.d_dot).values
