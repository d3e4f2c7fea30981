"""Pipes, as of `task.path=<(zcat text.gz)`: read once, into a file that can be read often."""

import atexit
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from fwlight.errors import DataError, one_line

WRITER_SECONDS = 30.0
"""How long a pipe that nobody writes to is waited for."""

_copies: dict[tuple[str, int, int], Path] = {}


def copied(path: Path) -> Path:
    """Return a file with what comes out of a pipe, which goes with this process.

    Raises:
        DataError: nobody writes to it.
        OSError: it cannot be read or copied.
    """
    status = os.stat(path)
    key = str(path), status.st_dev, status.st_ino
    if key not in _copies:
        print(f"reading the pipe {one_line(path)} to its end", file=sys.stderr, flush=True)
        folder = tempfile.mkdtemp(prefix="fwlight-pipe-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        copy = Path(folder, path.name)
        # Opened without waiting, it is at its end until somebody opens it for writing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as pipe, copy.open("wb") as file:
            end = time.monotonic() + WRITER_SECONDS
            while (first := pipe.read(1)) == b"":
                if time.monotonic() > end:
                    raise DataError(f"{path} is a pipe that nobody writes to, or has been read")
                time.sleep(0.05)
            os.set_blocking(descriptor, True)
            file.write(first or b"")
            shutil.copyfileobj(pipe, file, 1 << 20)
        _copies[key] = copy
    return _copies[key]
