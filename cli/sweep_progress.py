"""How far a sweep is, told while it runs."""

import sys
import time
from pathlib import Path

from fwlight.durations import duration
from fwlight.runs import read_run

_ON_TERMINAL, _ELSEWHERE = 10.0, 600.0
"""Seconds between two lines, of which a terminal shows the last one."""


class SweepProgress:
    """Says how many runs are done and running, and how long the others will take.

    A running one counts as far as its metrics.csv says. What the runs take is taken to be alike.

    Args:
        total: Runs of the sweep.
        finished: How many of them were finished before.
    """

    def __init__(self, total: int, *, finished: int) -> None:
        self._total, self._done, self._before = total, finished, finished
        self._began = time.monotonic()
        self._running: dict[Path, float] = {}
        """Folder of each running run, and how far it was when it was started."""
        self._skipped = 0.0
        self._terminal = sys.stdout.isatty()
        self.every = _ON_TERMINAL if self._terminal else _ELSEWHERE

    def started(self, folder: Path) -> None:
        """Count a run that was started."""
        self._running[folder] = _share(folder)

    def ended(self, folder: Path, result: str) -> None:
        """Count a run that has come to its end, well or not, and say so."""
        self._skipped += self._running.pop(folder)
        self._done += 1
        self._print(result, lasting=True)
        self.show()

    def show(self) -> None:
        """Say how far the sweep is."""
        if self._done < self._total:
            self._print(self.line(), lasting=not self._terminal)

    def line(self) -> str:
        """Return how far the sweep is."""
        text = f"{self._done} of {self._total} runs done, {len(self._running)} running"
        now = sum(map(_share, self._running))
        made = self._done - self._before - self._skipped + now - sum(self._running.values())
        if made <= 0:
            return text
        left = self._total - self._done - now
        return f"{text}, about {duration((time.monotonic() - self._began) * left / made)} left"

    def _print(self, line: str, *, lasting: bool) -> None:
        # What stands in the terminal's line is painted over.
        clear = "\r\x1b[K" if self._terminal else ""
        print(f"{clear}{line}", end="\n" if lasting else "", flush=True)


def _share(folder: Path) -> float:
    """Return which share of its updates a run has made."""
    run = read_run(folder)
    return min(1.0, (run.step or 0) / run.max_steps) if run.max_steps else 0.0
