"""What the reports of sweeps share: a command that names the sweep's folder, and reading runs."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class FinishedRun(NamedTuple):
    """What a run leaves when it is done."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]


def finished_runs(folder: Path, *, pattern: str = "*") -> Iterator[FinishedRun]:
    """Yield the finished runs of a sweep by name; one whose files are damaged is left out and told.

    Args:
        folder: The sweep's.
        pattern: Of the runs' folders within it.
    """
    for path in sorted(folder.glob(f"{pattern}/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            run = FinishedRun(path.parent, {**summary}, read_config(path.parent))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            print(f"warning: {path.parent} is left out ({_first_line(error)})", file=sys.stderr)
            continue
        yield run


def read_config(run: Path) -> dict[str, Any]:
    """Return what a run's config.yaml holds.

    Raises:
        ValueError: It is no such file.
        OSError: It cannot be read.
    """
    try:
        return {**yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))}
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(f"{run}/config.yaml is not that of a run: {_first_line(error)}") from error


def read_curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """Return the steps and values of a metric; rows that are damaged are left out."""
    curve = []
    for row in (run / "metrics.csv").read_text(encoding="utf-8", errors="replace").splitlines():
        step, _, rest = row.partition(",")
        name, _, value = rest.partition(",")
        if name == metric:
            try:
                curve.append((int(step), float(value)))
            except ValueError:
                continue
    return curve


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def report_command(arguments: Sequence[str], report: Callable[[Path], None], *, table: str) -> int:
    """Write the report of the one folder that is named and print its table; the exit code.

    Args:
        arguments: The command line.
        report: Writes a report into a folder; ValueError if there is nothing to report.
        table: The file of the report that is printed.
    """
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("error: name one folder with finished runs", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        report(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((folder / table).read_text(encoding="utf-8"), end="")
    return 0
