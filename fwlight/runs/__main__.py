"""`python -m fwlight.runs [FOLDER] [--sort COLUMN] [--columns A,B] [--csv]`, or `fwlight-runs`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fwlight import extras
from fwlight.errors import ConfigError, FwlightError, error_line
from fwlight.runs import as_csv, as_text, find_runs, read_run

_ABOUT = """\
Runs of any task below a folder: whether each is finished, running, stopped or failed, what differs
between them, their metrics, time and tokens a second. Runs may go on meanwhile."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code.

    Args:
        arguments: None are those of this process.
    """
    parser = _Parser(prog="python -m fwlight.runs", description=_ABOUT)
    parser.add_argument("folder", nargs="?", default="runs", help="default: runs")
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help="a metric, the best first, a key or run; default: what decides the best checkpoint",
    )
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="metrics, keys (optimizer.lr or lr), step, seconds, tokens_per_second, data, error; "
        "data stands there whenever runs are of different texts",
    )
    parser.add_argument("--csv", action="store_true", help="every difference and every metric")
    try:
        chosen = parser.parse_args(arguments)
        folder = Path(chosen.folder)
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}")
        runs = [read_run(path, below=folder) for path in find_runs(folder)]
        if not runs:
            raise ConfigError(f"there is no run in {folder}")
        columns = chosen.columns.split(",") if chosen.columns else None
        show = as_csv if chosen.csv else as_text
        print(show(runs, sort=chosen.sort, columns=columns), end="", flush=True)
    except FwlightError as error:
        print(error_line(error), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (told := extras.missing(error)) is None:
            raise
        print(error_line(told), file=sys.stderr)
        return ConfigError.exit_code
    except BrokenPipeError:  # its reader, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
