"""Runs side by side, read from their folders: `python -m fwlight.runs FOLDER`.

Needs no torch; see `fwlight.runs.reading` for what is read and `fwlight.runs.table` for what is
shown.
"""

from fwlight.runs.reading import Run, find_runs, read_run
from fwlight.runs.table import as_csv, as_text

__all__ = ["Run", "as_csv", "as_text", "find_runs", "read_run"]
