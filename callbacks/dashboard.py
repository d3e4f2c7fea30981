"""Which of the watched quantities TensorBoard shows together."""

from typing import cast

from lightning import Callback, LightningModule, Trainer

from callbacks.watching import Part
from fwlight.training.module import TrainingModule


class Dashboard(Callback):
    """Groups the tags of all layer watchers by layer in TensorBoard's custom scalars tab."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so once; by then every watcher knows its layers."""
        layout: dict[str, dict[str, list[str]]] = {}
        # Lightning sets the list where pyright does not see it.
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            for layer in callback.layers if isinstance(callback, Part) else ():
                charts = layout.setdefault(layer.name, {})
                for heading, pattern in callback.charts.items():
                    charts[heading] = [f"{callback.tag}/{layer.name}/{pattern}$"]
        if layout:
            cast(TrainingModule, pl_module).log_layout(layout)
