"""Which quantities TensorBoard shows together."""

import re
from typing import cast

from lightning import Callback, LightningModule, Trainer

from callbacks.watching import Part
from fwlight.training.module import TrainingModule

_MOST_RESULTS = 4


class Dashboard(Callback):
    """Fills TensorBoard's custom scalars tab: the loss, then what is watched, by layer."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so once; by then every watcher knows its layers."""
        module = cast(TrainingModule, pl_module)
        layout = {"results": _results(module)}
        # Lightning sets the list where pyright does not see it.
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if not isinstance(callback, Part):
                continue
            for layer in callback.layers if module.shows_all else callback.main_layers:
                charts = layout.setdefault(layer.name, {})
                for heading, pattern in callback.charts.items():
                    if module.shows_all or any(re.fullmatch(pattern, x) for x in _names(callback)):
                        charts[heading] = [f"{callback.tag}/{layer.name}/{pattern}$"]
        module.log_layout({category: charts for category, charts in layout.items() if charts})


def _results(module: TrainingModule) -> dict[str, list[str]]:
    """Return a chart for the loss, and for each other metric of the task, of all splits."""
    measured = (*module.loss_metrics("val", 1.0), *module.monitored)
    names = list(dict.fromkeys(name.partition("/")[2] for name in measured))
    return {
        name: [rf"^(train|val|test|published_\w+)/{re.escape(name)}$"]
        for name in ["loss", *names][:_MOST_RESULTS]
    }


def _names(part: Part) -> list[str]:
    return list(part.main or part.names)
