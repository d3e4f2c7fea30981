"""What the loggers of a run share: they never end it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(Logger):
    """A logger that stops with one warning when its file cannot be read or written.

    Args:
        path: Its file or folder.
        run_dir: The run's folder.
    """

    takes_all = True
    """Whether it takes what is not of the main things, see `TrainingModule.record`."""

    def __init__(self, path: Path, *, run_dir: Path) -> None:
        super().__init__()
        self.path, self._run_dir = path, run_dir
        self._failed = False

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run_dir.name

    @property
    def version(self) -> str:
        """Of no use here: a run has its own folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the loggers get the configuration when they are made."""

    def _told(self) -> str:
        """Return what cannot be written, in words."""
        return str(self.path)

    def _try(self, action: Callable[[], object]) -> None:
        """Run a logging action; after an error, whatever it is, warn and run none any more."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            system = error.strerror if isinstance(error, OSError) else None
            print(
                f"warning: {self._told()} cannot be written "
                f"({system or f'{type(error).__name__}: {error}'}); nothing more is logged there, "
                "training goes on",
                file=sys.stderr,
                flush=True,
            )
