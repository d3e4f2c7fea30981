"""What the memories are worth while they learn, and what limits them; off unless it is chosen."""

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from fwlight.diagnostics.interventions import intervene
from fwlight.diagnostics.layers import memory_layers, some_rows
from fwlight.lightning_internals import completes_update
from fwlight.sharding import gathered
from fwlight.training.module import TrainingModule


class Interventions(Callback):
    """Logs `interventions/<layer>/<change>`: what changes of a whole layer cost, nats per target.

    The changes are those of `fwlight.diagnostics.interventions.intervene`, made on sequences of the
    current batch after its update, those of the first process; training does not notice. `<change>`
    has its standard error beside it, `<change>_error`.

    Args:
        every_n_steps: Steps between two looks; each is some twenty forward passes a layer.
        sequences: How many of the batch.

    Raises:
        ValueError: If there are less than two sequences, which have no standard error, or
            `every_n_steps` is below 1.
    """

    def __init__(self, *, every_n_steps: int = 1000, sequences: int = 8) -> None:
        if every_n_steps < 1 or sequences < 2:
            raise ValueError(
                f"every_n_steps={every_n_steps} must be at least 1, sequences={sequences} 2"
            )
        self.every_n_steps, self.sequences = every_n_steps, sequences

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look where it is due."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        module = cast(TrainingModule, pl_module)
        if not due or not completes_update(trainer) or not memory_layers(module.network):
            return
        with gathered(module), trainer.precision_plugin.forward_context():
            if not trainer.is_global_zero:
                return
            found = intervene(module, [some_rows(batch, slice(self.sequences))], heads=False)
        tagged = {
            f"interventions/{x.layer.name}/{name}{end}": value
            for x in found
            for name, pair in x.whole.items()
            for end, value in zip(("", "_error"), pair, strict=True)
        }
        module.record(tagged, step, main=False)
