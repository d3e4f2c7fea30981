"""What the reports of sweeps share: a command that names the sweep's folder."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


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
