"""A fault at a change of files: this process is killed, or the disk fails, just before it.

Changes are files opened for writing, renamed and removed, folders made and removed; each is a word
and a path, as in "rename run/summary.json". What a disk holds before the next change is what it
held after the last one.
"""

import errno
import fnmatch
import os
import signal
import sys

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PATHS = {"os.rename": (1, 3), "os.remove": (0, 1), "os.mkdir": (0, 2), "os.rmdir": (0, 1)}
"""Of the interpreter's audit events: which arguments are the path and the folder it is in."""


def wound(
    folder: str, *, at: str = "*", n: int = 1, error: str | None = None, told: str | None = None
) -> None:
    """Let the n-th of the changes below a folder that match a pattern be a fault.

    Args:
        folder: Where; paths are relative to it.
        at: Which changes count.
        n: Which of them it is, from 1 on.
        error: The disk's error, as ENOSPC; None kills the process.
        told: The file that the change is written to, once it came to it.
    """
    seen, folder = 0, os.path.realpath(folder)

    def hook(event, arguments):
        nonlocal seen
        change = _change(event, arguments, folder)
        if change is None or not fnmatch.fnmatchcase(change, at):
            return
        seen += 1
        if seen != n:
            return
        if told is not None:
            with open(told, "w") as file:
                file.write(change)
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            number = getattr(errno, error)
            raise OSError(number, os.strerror(number))

    sys.addaudithook(hook)


def _change(event: str, arguments: tuple, folder: str) -> str | None:
    if event == "open":
        path, _, flags = arguments
        within = -1
        if not isinstance(flags, int) or not flags & _WRITING:
            return None
    elif event in _PATHS:
        path, within = (arguments[i] for i in _PATHS[event])
    else:
        return None
    if isinstance(path, int) or path is None:
        return None
    parent = os.readlink(f"/proc/self/fd/{within}") if within not in (-1, None) else os.getcwd()
    path = os.path.join(parent, os.fsdecode(path))
    if not path.startswith(folder + "/"):
        return None
    return f"{event.removeprefix('os.')} {path[len(folder) + 1 :]}"
