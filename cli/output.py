"""Standard streams that are closed, full or broken: what is written to them is lost, no more.

Only what a command was to print as its result may not get lost without a word; see `tell`.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from fwlight.errors import StorageError


def mend_streams() -> None:
    """Put a stream where there is none, and let every stream take every character.

    A process that is started with one of the descriptors 0, 1 and 2 closed would give its number to
    the next file it opens, a checkpoint perhaps, which then gets whatever a library prints.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, mode, closefd=False), "utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an encoding may lack a character


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """In the block, text that cannot be written is lost; of a full disk with one warning."""
    streams = sys.stdout, sys.stderr
    # Any: pytest's streams are text streams that are no TextIO.
    lasting = [
        _Lasting(stream, name) for stream, name in zip(streams, ("stdout", "stderr"), strict=True)
    ]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in lasting)
    try:
        yield
    finally:
        for stream in lasting:
            stream.close_if_broken()
        sys.stdout, sys.stderr = streams


def tell(text: str) -> None:
    """Print the result of a command, line ends included; see `check_told`."""
    print(text, end="", flush=True)
    check_told()


def check_told() -> None:
    """Check that what was printed until now is not lost.

    Raises:
        StorageError: It is, and not because its reader wanted no more of it.
    """
    error = getattr(sys.stdout, "failure", None)
    if error is not None and not isinstance(error, BrokenPipeError):
        raise StorageError(
            f"standard output cannot be written ({getattr(error, 'strerror', None) or error})"
        )


class _Lasting:
    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: a program has closed it
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def close_if_broken(self) -> None:
        """Lose what is still to be written; Python would make it another exit code."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def _lost(self, error: Exception) -> None:
        first, self.failure = self.failure is None, error
        # Of a pipe whose reader has left nobody needs to be told.
        if first and self._name == "stdout" and not isinstance(error, BrokenPipeError):
            reason = getattr(error, "strerror", None) or error
            print(
                f"warning: stdout cannot be written ({reason}); what it gets is lost",
                file=sys.stderr,
                flush=True,
            )
