"""Running the compiler: errors in one line, and nothing goes on when this process is killed."""

import os
import subprocess
import sys

SUPERVISOR = """
import os, signal, subprocess, sys, threading
compiler = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.buffer.read()  # ends with the process that asked
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = compiler.wait()
os._exit(code if code >= 0 else 1)
"""
"""A program that runs a command and kills its whole process group when its own input ends. A
compiler is several processes, which nothing ends with the one that started the first of them."""


class CommandError(Exception):
    """A command cannot be run or failed; the message says why, in one line."""


def answer(command: list[str]) -> str:
    """Return what a command of moments prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise _failed(command, getattr(error, "stderr", None) or str(error)) from error
    return done.stdout


def run(command: list[str], *, temporary: str) -> None:
    """Run a command that takes its time; it ends with this process, however that ends.

    Args:
        command: Program and arguments.
        temporary: The folder for its temporary files.
    """
    theirs, ours = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SUPERVISOR, *command],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TMPDIR": temporary},
                start_new_session=True,  # a group of its own; Ctrl-C comes to us
            )
        except OSError as error:
            raise _failed(command, str(error)) from error
        finally:
            os.close(theirs)
        _, told = process.communicate(timeout=600)
    except subprocess.TimeoutExpired as error:
        raise _failed(command, "it took more than 10 minutes") from error
    finally:
        os.close(ours)
    if process.returncode:
        raise _failed(command, told)


def _failed(command: list[str], told: str) -> CommandError:
    lines = told.strip().splitlines()
    reason = next((line for line in lines if "error" in line), lines[0] if lines else "")
    return CommandError(f"{command[0]} failed: {reason.strip()}")
