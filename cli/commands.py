"""What a command line asks for: one run, a sweep, or only to be told something."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.acting import act
from cli.composition import compose_config
from cli.early import check_files
from cli.folders import own, without_own
from cli.launch import check_launched, first_process
from cli.launchers import is_local, launch_alone
from cli.output import check_told, tell
from cli.stored import before_checkpoint
from cli.sweep import expand, run_sweep
from cli.usage import usage
from fwlight import __version__
from fwlight.errors import StorageError, printable


def obey(arguments: Sequence[str]) -> int:
    """Do what a command line says; return the exit code of a sweep or a launcher, 0 of all else."""
    paths, arguments = without_own(arguments)
    with own(paths):
        return _obey(arguments)


def _obey(arguments: list[str]) -> int:
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
    return 0


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
    return 0


def _write(path: str | Path, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
