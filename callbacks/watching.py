"""One watcher, whose parts are callbacks: when they look, at what, and over which processes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from lightning import Callback, LightningModule, Trainer

from fwlight.diagnostics import Statistics, merge
from fwlight.diagnostics.layers import (
    Found,
    Layer,
    look,
    memory_layers,
    n_rows,
    nothing,
    some_rows,
)
from fwlight.diagnostics.metric import LayerStatistics
from fwlight.lightning_internals import completes_update
from fwlight.sharding import gathered
from fwlight.training.module import TrainingModule

_MAIN_LAYERS = 4
_FIRST_DRAWING = 0.4
"""Seconds that a drawing is taken to need before one was timed."""


class Watcher:
    """What parts share that look at as many sequences: one forward pass, one pair of collectives.

    The forward pass leaves no trace and shows the layers after the step's update. The sequences are
    the same ones however many processes share the batch, and what the parts measure of them is
    added over processes before anything is made of it.

    Args:
        parts: Those of a training, on every process the same.
        module: What is trained.
    """

    def __init__(self, parts: "Sequence[Part]", module: TrainingModule) -> None:
        self.parts = [part for part in parts if part.layers]
        empty = {
            self._key(part, layer): part.measured(layer, nothing(layer))
            for part in self.parts
            for layer in part.layers
        }
        self._metric = LayerStatistics(empty).to(module.device)

    def look(self, trainer: Trainer, module: TrainingModule, batch: Any, due: "list[Part]") -> None:
        """Show parts what their layers do with a batch; a collective on all processes."""
        wanted, n = due[0].sequences, n_rows(batch) * trainer.world_size
        few = batch if wanted is None else some_rows(batch, slice(None, None, max(1, n // wanted)))
        layers = list(dict.fromkeys(layer for part in due for layer in part.layers))
        context = trainer.precision_plugin.forward_context()
        with gathered(module):
            measured = {
                self._key(part, layer): part.measured(layer, seen)
                for layer, seen in look(module, layers, few, context=context)
                for part in due
                if layer in part.layers
            }
        self._metric.reset()
        self._metric.update(measured)
        found = self._metric.layers()
        for part in due:
            part.seen_at = trainer.global_step
            part.take(trainer, {layer: found[self._key(part, layer)] for layer in part.layers})

    def _key(self, part: "Part", layer: Layer) -> str:
        return f"{self.parts.index(part)}/{layer.name}"


class Part(Callback):
    """Looks every so many steps at what the layers do with a few sequences of the current batch.

    Parts that are due at a step, and want as many sequences, look together; see `Watcher`.

    A part says what it measures (`measure`), of which layers (`watches`), and logs `names` as
    `<tag>/<layer>/<name>`. It may draw (`figure`), which is done at the end, and at validations as
    far as that takes no more than 1 % of the time, and say in words (`describe`) how training
    ended.

    Args:
        every_n_steps: Steps between two looks; the last step always has one.
        sequences: How many of the batch over all processes, at least one each; None is all.

    Raises:
        ValueError: If a number is below 1.
    """

    tag = ""
    names: ClassVar[Mapping[str, str]] = {}
    """Name of a scalar -> reported value of `fwlight.diagnostics`."""
    main: ClassVar[Sequence[str]] = ()
    """Names that TensorBoard shows of the main layers, unless it shows all; none are all names."""
    charts: ClassVar[Mapping[str, str]] = {}
    """Heading in the dashboard -> pattern of the names below it."""

    def __init__(self, *, every_n_steps: int = 200, sequences: int | None = 4) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("sequences", sequences)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.every_n_steps, self.sequences = every_n_steps, sequences
        self.layers: list[Layer] = []
        self.latest: list[Found] = []
        """What the newest look found of every layer."""
        self.seen_at = -1
        """The step that it was at."""
        self._watcher: Watcher | None = None
        self._batch: Any = None
        self._drawn_at = -1
        self._draw_after = 0.0

    # What parts say

    def watches(self, layer: Layer) -> bool:
        """Whether a layer is looked at; by default every fast weight memory is."""
        return not layer.is_softmax

    def measure(self, layer: Layer, seen: Any) -> Statistics:
        """Return what is measured of a `Written` or `Attended`, of nothing with all names too."""
        raise NotImplementedError

    def take(self, trainer: Trainer, found: dict[Layer, Statistics]) -> None:
        """Take what a look found, over all processes."""
        self.latest = [Found(layer, statistics) for layer, statistics in found.items()]

    def scalars(self, found: Found) -> dict[str, float]:
        """Return what is logged of a layer: `names`, all heads pooled."""
        return {name: float(found.whole[source]) for name, source in self.names.items()}

    def figure(self) -> Any:
        """Return a matplotlib figure of `latest`, or None."""
        return None

    def draw_more(self, trainer: Trainer, module: TrainingModule) -> None:
        """Show something else, when the figure is."""

    def describe(self, found: Found) -> str | None:
        """Return what the end of training says of a layer, or None."""
        return None

    # Lightning's hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; the last of the parts that look together makes their watcher."""
        module = cast(TrainingModule, pl_module)
        self.layers = [layer for layer in memory_layers(module.network) if self.watches(layer)]
        self.latest, self._batch = [], None
        self.seen_at = self._drawn_at = -1
        self._draw_after = time.monotonic() + 100 * _FIRST_DRAWING
        # Lightning sets the list where pyright does not see it.
        callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        parts = [x for x in callbacks if isinstance(x, Part) and x.sequences == self.sequences]
        if self is parts[-1]:
            watcher = Watcher(parts, module)
            for part in parts:
                part._watcher = watcher

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
        self._batch = batch
        if self._due(trainer):
            module = cast(TrainingModule, pl_module)
            self._look(trainer, module)
            tagged = self.tagged()
            main = {tag: x for tag, x in tagged.items() if self.is_main(tag)}
            module.record(main, trainer.global_step)
            others = {tag: x for tag, x in tagged.items() if tag not in main}
            module.record(others, trainer.global_step, main=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the newest look."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and time.monotonic() >= self._draw_after:
            self._draw(trainer, cast(TrainingModule, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more where the last step had none; draw, and say what was seen."""
        if self._batch is None:
            return
        self._look(trainer, cast(TrainingModule, pl_module), at_end=True)
        self._batch = None
        self._draw(trainer, cast(TrainingModule, pl_module))
        for found in self.latest if trainer.is_global_zero else ():
            line = self.describe(found)
            if line is not None:
                print(f"{found.layer.name}: {line}", flush=True)

    # Parts

    def tagged(self) -> dict[str, float]:
        """Return the scalars of the newest look by tag."""
        return {
            f"{self.tag}/{found.layer.name}/{name}": value
            for found in self.latest
            for name, value in self.scalars(found).items()
        }

    @property
    def main_layers(self) -> list[Layer]:
        """The first layer, the last, and two between."""
        last = len(self.layers) - 1
        if last < _MAIN_LAYERS:
            return self.layers
        return [self.layers[round(i * last / (_MAIN_LAYERS - 1))] for i in range(_MAIN_LAYERS)]

    def is_main(self, tag: str) -> bool:
        """Whether a scalar is shown where not all are."""
        layer, _, name = tag.removeprefix(f"{self.tag}/").rpartition("/")
        return layer in {x.name for x in self.main_layers} and (not self.main or name in self.main)

    def measured(self, layer: Layer, seen: Sequence[Any]) -> Statistics:
        """Return what is measured of everything that was seen of a layer."""
        return merge(*(self.measure(layer, x) for x in seen))

    def _due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return step % self.every_n_steps == 0 or step == trainer.max_steps

    def _look(self, trainer: Trainer, module: TrainingModule, *, at_end: bool = False) -> None:
        """Look, unless another part has looked for this one."""
        if self.seen_at == trainer.global_step:
            return
        assert self._watcher is not None
        parts = [x for x in self._watcher.parts if x.seen_at != trainer.global_step]
        due = [part for part in parts if at_end or part._due(trainer)]
        self._watcher.look(trainer, module, self._batch, due)

    def _draw(self, trainer: Trainer, module: TrainingModule) -> None:
        if not trainer.is_global_zero or not self.latest or self._drawn_at == self.seen_at:
            return
        started = time.monotonic()
        figure = self.figure()
        if figure is not None:
            module.log_figure(self.tag, figure, self.seen_at)
        self.draw_more(trainer, module)
        now = time.monotonic()
        self._draw_after, self._drawn_at = now + 100 * (now - started), self.seen_at
