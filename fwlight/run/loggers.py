"""Where metrics go: metrics.csv always, TensorBoard if wanted. Logging never ends a run."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fwlight.run.files import write_atomically
from fwlight.run.folder import RunFolder

HPARAMS_METRICS = ("val/ppl", "test/ppl")
"""What the HPARAMS tab compares runs by; logged as scalars of the same names."""


def build_loggers(
    folder: RunFolder, *, hyperparameters: dict[str, Any], tensorboard: bool = True
) -> list[Logger]:
    """Return the loggers of a run.

    On resume, what was logged after the step the run goes on from is dropped, so that every curve
    is continuous.

    Args:
        folder: The run's folder.
        hyperparameters: The configuration, nested plain containers.
        tensorboard: Whether TensorBoard events are written beside metrics.csv.
    """
    step = folder.resume_step
    loggers: list[Logger] = [CsvLogger(folder.metrics_csv, resumed_at=step)]
    if folder.is_rank_zero and step is not None:
        _never_fail(folder.metrics_csv, lambda: purge_csv(folder.metrics_csv, step))
    if tensorboard:
        purge_step = None if step is None else step + 1
        loggers.append(
            TensorBoard(folder.tensorboard, purge_step=purge_step, hyperparameters=hyperparameters)
        )
    return loggers


def purge_csv(path: Path, step: int) -> None:
    """Drop rows after `step`, test results and a half-written last row."""
    _keep_rows(path, lambda row: _is_kept(row, step))


def _keep_rows(path: Path, wanted: Callable[[str], bool]) -> None:
    if not path.exists():
        return
    rows = path.read_text().splitlines(keepends=True)
    kept = [row for row in rows[1:] if wanted(row)]
    text = CsvLogger.header + "".join(kept)
    write_atomically(path, lambda file: file.write(text.encode()))


def _is_kept(row: str, step: int) -> bool:
    fields = row.rstrip("\n").split(",")
    return (
        row.endswith("\n")
        and len(fields) == 3
        and fields[0].isdecimal()
        and int(fields[0]) <= step
        and not fields[1].startswith("test/")
    )


class _RunLogger(Logger):
    """A logger that stops with one warning when its file cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._failed = False

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Of no use here: a run has its own folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the loggers get the configuration when they are made."""

    def _try(self, action: Callable[[], object]) -> None:
        if not self._failed and not _never_fail(self.path, action):
            self._failed = True


class CsvLogger(_RunLogger):
    """Appends rows `step,metric,value`; values read back exactly.

    Args:
        path: The file.
        resumed_at: The step a resumed run goes on from. Where gradients are accumulated, an
            evaluation between two updates may already have been logged there; its rows are
            replaced.
    """

    header = "step,metric,value\n"

    def __init__(self, path: Path, *, resumed_at: int | None = None) -> None:
        super().__init__(path)
        self._resumed_at = resumed_at
        self._file: TextIOWrapper | None = None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of a step."""
        rows = [f"{step},{name},{float(value)!r}\n" for name, value in metrics.items()]
        if step is not None and step == self._resumed_at:
            self._try(lambda: self._drop(tuple(f"{step},{name}," for name in metrics)))
        self._try(lambda: self._write("".join(rows)))

    @rank_zero_only
    def save(self) -> None:
        """Put everything on the disk."""
        if self._file is not None:
            descriptor = self._file.fileno()
            self._try(lambda: os.fsync(descriptor))

    def _drop(self, beginnings: tuple[str, ...]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        _keep_rows(self.path, lambda row: not row.startswith(beginnings))

    def _write(self, text: str) -> None:
        if self._file is None:
            self._file = self.path.open("a")
            if self._file.tell() == 0:
                text = self.header + text
        self._file.write(text)
        self._file.flush()


class TensorBoard(_RunLogger):
    """Scalars, text and the HPARAMS tab.

    Args:
        path: Folder of the event files.
        purge_step: Events from this step on, written by an earlier process, are not shown.
        hyperparameters: What the HPARAMS tab lists beside `HPARAMS_METRICS`.
    """

    def __init__(
        self, path: Path, *, purge_step: int | None, hyperparameters: dict[str, Any]
    ) -> None:
        super().__init__(path)
        self._purge_step = purge_step
        self._hyperparameters = _flat(hyperparameters)
        self._writer: Any = None
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
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            if self._purge_step is not None:
                _wait_for_later_name(self.path)
            # The worker thread of a writer re-raises a failed write in the next call, too.
            threading.excepthook = _all_but_event_writers
            self._writer = SummaryWriter(str(self.path), purge_step=self._purge_step, flush_secs=10)
            experiment, start, self._session_end = hparams(
                self._hyperparameters, dict.fromkeys(HPARAMS_METRICS, 0.0)
            )
            for summary in (experiment, start):
                self._writer.file_writer.add_summary(summary)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write scalars; not-a-number and infinity as they are."""

        def write() -> None:
            for name, value in metrics.items():
                self._opened().add_scalar(name, float(value), step)

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
        if self._writer is not None:
            self._try(self._writer.flush)

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
    made = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    time.sleep(min(max(max(made, default=0) + 1 - time.time(), 0.0), 1.0))


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


def _never_fail(path: Path, action: Callable[[], object]) -> bool:
    """Run a logging action; on an error of the file system warn and return False."""
    try:
        action()
        return True
    except OSError as error:
        reason = error.strerror or error
        print(
            f"warning: {path} cannot be written ({reason}); nothing more is logged there, "
            "training goes on",
            file=sys.stderr,
            flush=True,
        )
        return False
