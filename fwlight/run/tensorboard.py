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

from lightning.pytorch.utilities import rank_zero_only

from fwlight.run.run_logger import RunLogger

HPARAMS_METRICS = ("val/ppl", "test/ppl")
"""What the HPARAMS tab compares runs by; logged as scalars of the same names."""

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")
"""How a writer names its file, with the second of its making."""
_TESTS = ".test"


class TensorBoard(RunLogger):
    """Scalars, text and the HPARAMS tab.

    Results of the test have a file of their own: a finished run that is resumed is tested again at
    a step whose other events stay.

    Args:
        path: Folder of the event files.
        purge_step: Events from this step on, written by an earlier process, are not shown.
        hyperparameters: What the HPARAMS tab lists beside `HPARAMS_METRICS`.
        drop_tests: Whether to remove the results of earlier processes' tests.
    """

    def __init__(
        self,
        path: Path,
        *,
        purge_step: int | None,
        hyperparameters: dict[str, Any],
        drop_tests: bool = False,
    ) -> None:
        super().__init__(path)
        if drop_tests:
            self._try(lambda: _remove_tests(path))
        self._purge_step = purge_step
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
            experiment, start, self._session_end = hparams(
                self._hyperparameters, dict.fromkeys(HPARAMS_METRICS, 0.0)
            )
            for summary in (experiment, start):
                self._writer.file_writer.add_summary(summary)
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
                writer.add_scalar(name, float(value), step)

        self._try(write)

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Show text as it is, line breaks and all."""
        indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for verbatim
        self.call("add_text", tag, indented, step)

    @rank_zero_only
    def log_figure(self, tag: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure."""
        self.call("add_figure", tag, figure, step)

    @rank_zero_only
    def log_layout(self, layout: dict[str, dict[str, list[str]]]) -> None:
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
