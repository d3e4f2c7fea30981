"""Where metrics go: metrics.csv always, and wherever else. Logging never ends a run."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fwlight.run.files import write_atomically
from fwlight.run.folder import RunFolder
from fwlight.run.run_logger import RunLogger, guarded
from fwlight.run.tensorboard import TensorBoard


def build_loggers(
    folder: RunFolder,
    *,
    hyperparameters: dict[str, Any],
    others: Mapping[str, Callable[..., Logger]] | None = None,
    all_scalars: bool = False,
    monitor: str = "val/loss",
) -> list[Logger]:
    """Return the loggers of a run: that of metrics.csv, and others.

    On resume, what was logged after the step the run goes on from is dropped, and what was logged
    of the test, so that every curve is continuous. A logger of others goes on as it can.

    Args:
        folder: The run's folder.
        hyperparameters: The configuration, nested plain containers.
        others: By name, TensorBoard by default. Each is called with the other arguments, with
            `save_dir`, a folder of its name in the run's (TensorBoard's is the run's folder itself,
            after which the page names the run), and with `resumed_at`, the step the run goes on
            from where there is one.
        all_scalars: Whether TensorBoard shows every scalar of metrics.csv, or the main ones.
        monitor: The metric whose best value is the run's result.
    """
    others = {"tensorboard": TensorBoard} if others is None else others
    resumed_at = folder.resume_step if folder.is_rank_zero else None
    loggers: list[Logger] = [CsvLogger(folder.metrics_csv, resumed_at=resumed_at)]
    for name, make in others.items():
        logger = make(
            save_dir=folder.tensorboard if name == "tensorboard" else folder.place(name),
            resumed_at=resumed_at,
            hyperparameters=hyperparameters,
            all_scalars=all_scalars,
            monitor=monitor,
        )
        own = isinstance(logger, RunLogger)
        loggers.append(logger if own else guarded(logger, f"logger.{name}", hyperparameters))
    return loggers


@contextlib.contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """At the end of the block, close the loggers that have something to close."""
    try:
        yield
    finally:
        for logger in loggers:
            if (close := getattr(logger, "close", None)) is not None:
                close()


class CsvLogger(RunLogger):
    """Appends rows `step,metric,value`; values read back exactly.

    Args:
        path: The file.
        resumed_at: The step a resumed run goes on from, see `purge_csv`.
    """

    header = "step,metric,value\n"

    def __init__(self, path: Path, *, resumed_at: int | None = None) -> None:
        super().__init__(path, run_dir=path.parent)
        self._file: TextIOWrapper | None = None
        if resumed_at is not None:
            self._try(lambda: purge_csv(path, resumed_at))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of a step."""
        rows = [f"{step},{name},{float(value)!r}\n" for name, value in metrics.items()]
        self._try(lambda: self._write("".join(rows)))

    @rank_zero_only
    def save(self) -> None:
        """Put everything on the disk."""
        if self._file is not None:
            descriptor = self._file.fileno()
            self._try(lambda: os.fsync(descriptor))

    def _write(self, text: str) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
            if self._file.tell() == 0:
                text = self.header + text
        self._file.write(text)
        self._file.flush()


def purge_csv(path: Path, step: int) -> None:
    """Drop rows after `step`, test results, a half-written last row, and what is damaged.

    Of a step and metric that is there twice the last row is kept. Damage is told in one warning.

    Raises:
        OSError: It is no file, or cannot be read or written.
    """
    if not path.exists():
        return
    if not path.is_file():  # reading a pipe or device may never end
        raise OSError(errno.EINVAL, "not a file")
    *rows, _ = path.read_bytes().split(b"\n")
    kept: dict[tuple[int, str], bytes] = {}
    damaged = 0
    for row in rows:
        if row + b"\n" == CsvLogger.header.encode():
            continue
        key = _step_and_metric(row)
        if key is None:
            damaged += 1
        elif key[0] <= step and not key[1].startswith("test/"):
            kept[key] = row
    content = b"".join([CsvLogger.header.encode(), *(row + b"\n" for row in kept.values())])
    write_atomically(path, lambda file: file.write(content))
    if damaged:
        print(f"warning: {path}: {damaged} damaged rows are dropped", file=sys.stderr, flush=True)


def _step_and_metric(row: bytes) -> tuple[int, str] | None:
    """Take a row apart, None if it is damaged."""
    try:
        step, metric, value = row.decode().split(",")
        float(value)
        return (int(step), metric) if step.isdecimal() and metric.isprintable() else None
    except ValueError:
        return None
