"""What TensorBoard shows of a run."""

import math
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from fwlight.run.run_logger import RunLogger

OVERVIEW = "_overview"
"""Where the results stand once more: TensorBoard sorts tags by name, and this one comes first."""
MOST_SCALARS = 60
_MOST_OTHERS = 38
"""Of them at most so many are neither results nor training metrics, which come later."""
_RESULTS = ("loss", "ppl", "acc", "bleu")
_SPLITS = ("train", "val", "test")

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")
"""How a writer names its file, with the second of its making."""
_TESTS = ".test"
_DPI = 160


class TensorBoard(RunLogger):
    """Scalars, text and the HPARAMS tab.

    By default there are `MOST_SCALARS` tags at most, those of train, val and test before others;
    their names are those of metrics.csv. The losses, and the metrics that the task is judged by,
    stand in `OVERVIEW` too, with which the page begins, and by which HPARAMS compares runs.

    Results of the test have a file of their own: a finished run that is resumed is tested again at
    a step whose other events stay.

    Args:
        save_dir: Folder of the event files.
        hyperparameters: What the HPARAMS tab lists, those first that differ between runs.
        resumed_at: The step a resumed run goes on from: later events of earlier processes are not
            shown, and the results of their tests are removed.
        all_scalars: Whether there are as many tags as there are.
        monitor: The metric whose best value is the run's result.
    """

    def __init__(
        self,
        save_dir: Path,
        *,
        hyperparameters: dict[str, Any],
        resumed_at: int | None = None,
        all_scalars: bool = False,
        monitor: str = "val/loss",
    ) -> None:
        run_dir = save_dir.parent if save_dir.name == "tensorboard" else save_dir
        super().__init__(save_dir, run_dir=run_dir, told=f"TensorBoard's part of {save_dir}")
        self.takes_all = all_scalars
        self._results = {*_RESULTS, monitor.removeprefix("val/")}
        self._shown: set[str] = set()
        if resumed_at is not None:
            self._try(lambda: _remove_tests(save_dir))
        self._purge_step = None if resumed_at is None else resumed_at + 1
        self._hyperparameters = _flat(hyperparameters)
        self._writer: Any = None
        self._test_writer: Any = None
        self._session_end: Any = None
        self._tolerant = _Tolerant(self)

    @property
    def experiment(self) -> Any:
        """The SummaryWriter, for figures and the like; its calls never fail. Rank zero only."""
        return self._tolerant

    def call(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the SummaryWriter, unless the disk has failed."""
        self._try(lambda: getattr(self._opened(), name)(*args, **kwargs))

    def _opened(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard.summary import hparams

            if self._purge_step is not None:
                _wait_for_later_name(self.path)
            self._writer = _new_writer(self.path, purge_step=self._purge_step)
            # Without an experiment of ours TensorBoard finds what differs between all runs.
            _, start, self._session_end = hparams(self._hyperparameters, {})
            self._writer.file_writer.add_summary(start)
        return self._writer

    def _opened_for_tests(self) -> Any:
        if self._test_writer is None:
            self._test_writer = _new_writer(self.path, filename_suffix=_TESTS)
        return self._test_writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write scalars; not-a-number and infinity as they are."""

        def write() -> None:
            for name, value in metrics.items():
                tests = name.startswith("test/")
                writer = self._opened_for_tests() if tests else self._opened()
                for tag in self._tags(name):
                    writer.add_scalar(tag, float(value), step)

        self._try(write)

    def _tags(self, name: str) -> list[str]:
        """Return the tags that a metric is shown under."""
        split, _, metric = name.partition("/")
        tags = [name]
        if split in _SPLITS and metric in self._results and (split != "train" or metric == "loss"):
            tags.insert(0, f"{OVERVIEW}/{name}")
        return [tag for tag in tags if self._admits(tag)]

    def _admits(self, tag: str) -> bool:
        """Say whether there is room for a tag."""
        if not self.takes_all and tag not in self._shown:
            others = [x for x in self._shown if _is_other(x)]
            full = _is_other(tag) and len(others) >= _MOST_OTHERS
            if full or len(self._shown) >= MOST_SCALARS:
                return False
            self._shown.add(tag)
        return True

    @rank_zero_only
    def show_text(self, tag: str, text: str, step: int) -> None:
        """Show text as it is, line breaks and all."""
        indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for verbatim
        self.call("add_text", tag, indented, step)

    @rank_zero_only
    def show_figure(self, tag: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure: a card is too small for more than one of its columns.

        They are called `tag`, `tag/2`, `tag/3` and so on.
        """

        def write() -> None:
            for number, column in enumerate(_columns(figure), start=1):
                name = tag if number == 1 else f"{tag}/{number}"
                self._opened().add_image(name, column, step, dataformats="HWC")

        self._try(write)

    @rank_zero_only
    def show_layout(self, layout: dict[str, dict[str, list[str]]]) -> None:
        """Fill the custom scalars tab: patterns of tags by category and chart."""
        charts = {
            category: {title: ["Multiline", tags] for title, tags in charts.items()}
            for category, charts in layout.items()
        }
        self.call("add_custom_scalars", charts)

    @rank_zero_only
    def save(self) -> None:
        """Put everything on the disk."""
        for writer in (self._writer, self._test_writer):
            if writer is not None:
                self._try(writer.flush)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Say that the run succeeded, and flush; the test comes after training and writes on."""
        if status == "success" and self._session_end is not None:
            self._try(lambda: self._writer.file_writer.add_summary(self._session_end))
            self._session_end = None
        self.save()


class _Tolerant:
    """A SummaryWriter to everybody else."""

    def __init__(self, logger: TensorBoard) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._logger.call, name)


def _columns(figure: Any) -> tuple[Any, ...]:
    """Return the columns of a figure as pixels `[H, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    grid = figure.axes[0].get_subplotspec().get_topmost_subplotspec().get_gridspec()
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.view(height, width, 4)[..., :3].tensor_split(grid.ncols, dim=1)


def _is_other(tag: str) -> bool:
    return tag.partition("/")[0] not in (OVERVIEW, *_SPLITS)


def _new_writer(path: Path, *, purge_step: int | None = None, filename_suffix: str = "") -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # The worker thread of a writer re-raises a failed write in the next call, too.
    threading.excepthook = _all_but_event_writers
    return SummaryWriter(
        str(path), purge_step=purge_step, flush_secs=10, filename_suffix=filename_suffix
    )


def _all_but_event_writers(failure: threading.ExceptHookArgs) -> None:
    if (
        not isinstance(failure.exc_value, OSError)
        or "AsyncWriter" not in type(failure.thread).__name__
    ):
        threading.__excepthook__(failure)


def _wait_for_later_name(folder: Path) -> None:
    """Let a new event file sort behind the old ones, whose names hold the second of their making.

    TensorBoard reads the files in the order of their names; what an earlier one holds can be purged
    only by a later one.
    """
    names = map(_EVENTS.match, os.listdir(folder) if folder.is_dir() else ())
    made = [int(match[1]) for match in names if match]  # others lay something beside the events
    time.sleep(min(max(max(made, default=0) + 1 - time.time(), 0.0), 1.0))


def _remove_tests(folder: Path) -> None:
    for file in folder.glob(f"*{_TESTS}"):
        if _EVENTS.match(file.name) and file.is_file():
            file.unlink()


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain and not _is_nan(value) else str(value)
    return flat


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
