"""Standard output and error that a full disk or a closed pipe does not end a training by."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """In the block, text that cannot be written is lost, with one warning on the other stream."""
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


class _Lasting:
    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._warn(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._warn(error)

    def close_if_broken(self) -> None:
        """Lose what is still to be written; Python would make it another exit code."""
        try:
            self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def _warn(self, error: OSError) -> None:
        if not self._failed and self._name == "stdout":
            print(
                f"warning: {self._name} cannot be written ({error.strerror or error}); training "
                "goes on",
                file=sys.stderr,
                flush=True,
            )
        self._failed = True
