"""What the loggers of a run share, its own and others': they never end it."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fwlight.errors import one_line

_CALLED = (
    *("log_metrics", "log_hyperparams", "log_graph", "after_save_checkpoint", "save", "finalize"),
    *("show_text", "show_figure", "show_layout", "close"),
)


class Attempts:
    """Calls of which the first that raises is the last, and one warning.

    Args:
        place: Where they write.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = place
        self.failed = False

    def __call__(self, action: Callable[[], object]) -> None:
        """Make a call, unless one has failed."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self.failed = True
            system = error.strerror if isinstance(error, OSError) else None
            print(
                f"warning: {self.place} cannot be written "
                f"({system or one_line(f'{type(error).__name__}: {error}')}); nothing more is "
                "logged there, training goes on",
                file=sys.stderr,
                flush=True,
            )


class RunLogger(Logger):
    """A logger that stops with one warning when its file cannot be read or written.

    Args:
        path: Its file or folder.
        run_dir: The run's folder.
        told: What a warning says cannot be written; None is the path.
    """

    takes_all = True
    """Whether it takes what is not of the main things, see `TrainingModule.record`."""

    def __init__(self, path: Path, *, run_dir: Path, told: str | None = None) -> None:
        super().__init__()
        self.path, self._run_dir = path, run_dir
        self._try = Attempts(told or path)

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


def guarded(logger: Logger, name: str, hyperparameters: dict[str, Any]) -> Logger:
    """Let a logger that is not ours stop with one warning where it raises, on rank zero alone.

    It stays what it is, for callbacks that look for a logger of its kind. Before the first metrics
    it gets the hyper-parameters; nothing is sent anywhere by a start that comes to nothing.

    Args:
        logger: Of Lightning or of one's own.
        name: What the warning calls it.
        hyperparameters: What `log_hyperparams` is given.
    """
    attempts, told = Attempts(name), False
    log_hyperparams, log_metrics = logger.log_hyperparams, logger.log_metrics

    def log_all(*args: Any, **kwargs: Any) -> None:
        nonlocal told
        if not told:
            told = True
            log_hyperparams(hyperparameters)
        log_metrics(*args, **kwargs)

    def attempting(call: Callable[..., Any]) -> Callable[..., None]:
        @rank_zero_only
        @functools.wraps(call)
        def attempt(*args: Any, **kwargs: Any) -> None:
            attempts(lambda: call(*args, **kwargs))

        return attempt

    for method in _CALLED:
        if (call := getattr(logger, method, None)) is not None:
            setattr(logger, method, attempting(log_all if method == "log_metrics" else call))
    return logger
