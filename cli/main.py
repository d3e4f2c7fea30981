"""`python train.py key=value ...`: from a command line to an exit code; see `--help`."""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cli.acting import act
from cli.composition import compose_config
from cli.early import check_files
from cli.folders import own, without_own
from cli.launch import check_launched, first_process, first_to_tell
from cli.launchers import is_local, launch_alone
from cli.output import check_told, lasting_output, mend_streams, tell
from cli.stored import before_checkpoint
from cli.sweep import expand, run_sweep
from cli.usage import usage
from fwlight import __version__
from fwlight.errors import FwlightError, StorageError, error_line, printable


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
    if isinstance(error, FwlightError):
        return error.exit_code, error_line(error)
    from fwlight.run import errors

    return errors.exit_code_and_line(error)


def _obey(arguments: list[str]) -> int:
    """Do what a command line says, and tell what went wrong."""
    try:
        paths, arguments = without_own(arguments)
        with own(paths):
            return _do(arguments)
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("FWLIGHT_DEBUG") == "1":
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        return _conclude(*exit_code_and_line(error), error)


def _do(arguments: list[str]) -> int:
    known = ("-h", "--help", "--version", "--cfg", "-m")
    flags = {flag for flag in known if flag in arguments}
    arguments = [argument for argument in arguments if argument not in flags]
    if flags & {"-h", "--help"}:
        tell(usage() + "\n")
    elif "--version" in flags:
        tell(f"fwlight {__version__}\n")
    elif flags >= {"-m", "--cfg"}:
        tell("".join(shlex.join(point.command) + "\n" for point in expand(arguments)))
    elif "-m" in flags:
        return run_sweep(arguments)
    elif "--cfg" in flags:
        tell(compose_config(arguments).yaml())
    else:
        return _run(arguments)
    return _conclude(0, None)


def _run(arguments: list[str]) -> int:
    """Act, and write or print the result; or let a launcher do it."""
    composition = compose_config(before_checkpoint(arguments))
    if not is_local(composition):
        check_files(composition.config)
        return launch_alone(composition, arguments)
    check_launched(composition.config["trainer"])
    verified = check_files(composition.config)
    result = act(composition, arguments, verified=verified)
    from fwlight import run

    output = composition.config["output"] or result.get("output")
    text = result["text"] if "text" in result else run.as_json(result) + "\n"
    if output is not None and first_process():
        _write(output, text)
    elif "text" in result:
        tell(printable(text) if sys.stdout.isatty() else text)
    elif composition.config["action"] != "fit":  # of that everything is in its folder
        check_told()
    return _conclude(0, None)


def _write(path: str | Path, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


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
