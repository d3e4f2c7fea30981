"""`python train.py key=value ...`: from a command line to an exit code; see `--help`."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cli.launch import first_to_tell
from cli.output import lasting_output, mend_streams
from fwlight import extras
from fwlight.errors import ConfigError, FwlightError, error_line, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code.

    Args:
        arguments: None are those of this process, which then ends here if it is one of several.
    """
    if arguments is not None:
        with lasting_output():
            return _obey(list(arguments))
    mend_streams()
    with lasting_output():
        code = _obey(sys.argv[1:])
    _leave(code)


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    """Explain an exception; without importing torch for a mistake found before it was."""
    if (told := extras.missing(error)) is not None:
        return ConfigError.exit_code, error_line(told)
    if isinstance(error, FwlightError):
        return error.exit_code, error_line(error)
    from fwlight.run import errors

    return errors.exit_code_and_line(error)


def _obey(arguments: list[str]) -> int:
    """Do what a command line says, and tell what went wrong."""
    try:
        from cli.commands import obey  # what it imports may not be installed

        return obey(arguments) or _conclude(0, None)
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("FWLIGHT_DEBUG") == "1":
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        return _conclude(*exit_code_and_line(error), error)


def _conclude(code: int, line: str | None, error: BaseException | None = None) -> int:
    """End this process: tell what went wrong, once for all the processes of a run."""
    if "fwlight.run" in sys.modules:
        from fwlight import run

        code, line = run.conclude(code, line)
        if error is not None and line is not None:
            run.note_failure(error, code, line)
    if line is not None and first_to_tell(line):
        print(line, file=sys.stderr)
    return code


def _leave(code: int) -> NoReturn:
    if "fwlight.run" in sys.modules:
        from fwlight import run

        run.leave(code)
    sys.exit(code)
