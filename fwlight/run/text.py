"""What commands read and print."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from fwlight.errors import ConfigError, DataError
from fwlight.pipes import copied


def read_lines(path: str | None) -> list[str]:
    """Return the lines of a UTF-8 file or pipe, or of standard input.

    Raises:
        ConfigError: The file cannot be read.
        DataError: It is no UTF-8, or a pipe that nobody writes to.
    """
    name = "standard input" if path is None else f"input={path}"
    try:
        if path is None:
            raw = sys.stdin.buffer.read()
        else:
            file = Path(path)
            raw = (copied(file) if file.is_fifo() else file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}: byte 0x{raw[error.start]:02x} in line {line} is not valid UTF-8"
        ) from error
    if "\n" not in text:  # as in tasks.io.textfiles, which this package does not import
        text = text.replace("\r", "\n")
    # Not splitlines(), which also cuts at other characters and so loses the count of sentences.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def as_json(values: Mapping[str, Any]) -> str:
    """Write results as JSON, null for what is no finite number: JSON has no other word for it."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(finite, indent=2, allow_nan=False)


def as_text(values: Mapping[str, Any]) -> str:
    """Write results in two columns, without what is None."""
    width = max(map(len, values))
    lines = [
        f"{name:<{width}}  {value:.6g}" if isinstance(value, float) else f"{name:<{width}}  {value}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(lines)


@rank_zero_only
def say(text: str) -> None:
    """Print, once for all processes of a run."""
    print(text, flush=True)


@rank_zero_only
def warn(text: str) -> None:
    """Write a warning, once for all processes of a run."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
