"""How far training is: a bar on a terminal, else one plain line every so many steps."""

import sys
import time
from typing import Any, TextIO, cast

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from fwlight.durations import duration
from fwlight.lightning_internals import completes_update
from fwlight.training.module import TrainingModule


class Progress(Callback):
    """Shows step, loss, perplexity, learning rate and the time left, and every evaluation's result.

    The steps that are left are taken to take as long as those of this start, evaluations included.

    Args:
        every_n_steps: Steps between two lines, or between two updates of the bar's figures; the
            figures are read from the device only then.
        stream: Where to; standard output if None.
    """

    def __init__(self, *, every_n_steps: int = 50, stream: TextIO | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.progress.every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._stream = stream
        self._bar: Any = None
        self._started, self._first_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar if somebody can see it."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and self._out.isatty():
            self._bar = tqdm(
                total=trainer.max_steps if trainer.max_steps > 0 else None,
                initial=trainer.global_step,
                file=self._out,
                dynamic_ncols=True,
                unit="step",
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step's own figures where they are due."""
        step = trainer.global_step
        # Accumulated batches end at a step that was shown already.
        if not trainer.is_global_zero or not completes_update(trainer):
            return
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        figures = _figures(cast(TrainingModule, pl_module).step_metrics(), "train") if due else ""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if due:
                self._bar.set_postfix_str(figures)
        elif due:
            self._print(f"{_place(trainer)}  {figures}{self._time_left(trainer)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the evaluation's result."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        figures = _figures(cast(TrainingModule, pl_module).latest, "val")
        self._print(f"{_place(trainer)}  validation: {figures}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal's line to the error message."""
        self._close()

    def _time_left(self, trainer: Trainer) -> str:
        step, made = trainer.global_step, trainer.global_step - self._first_step
        if not 0 < step < trainer.max_steps or made < 1:
            return ""
        seconds = time.monotonic() - self._started
        return f"  {duration(seconds / made * (trainer.max_steps - step))} left"

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stdout

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._out)
        else:
            seconds = time.monotonic() - self._started
            print(f"[{seconds:7.1f} s] {line}", file=self._out, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _place(trainer: Trainer) -> str:
    return f"step {trainer.global_step}" + (
        f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
    )


def _figures(metrics: dict[str, float], split: str) -> str:
    shown = (("loss", ".4f"), ("ppl", ".2f"), ("acc", ".4f"), ("reward", ".2f"), ("lr", ".2e"))
    return "  ".join(
        f"{name} {metrics[f'{split}/{name}']:{form}}"
        for name, form in shown
        if f"{split}/{name}" in metrics
    )
