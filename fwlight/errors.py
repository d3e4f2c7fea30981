"""Errors that end a run with one line for the user and a meaningful exit code."""

_HARMLESS = "\n\t\u200c\u200d"  # the last two join letters in some scripts
_LONGEST = 4000  # room for two long paths


class FwlightError(Exception):
    """A failure whose message is one line: what, where and the remedy."""

    exit_code = 1


class ConfigError(FwlightError, ValueError):
    """The configuration cannot be used as given."""

    exit_code = 2


class DataError(FwlightError, ValueError):
    """The data cannot be used as given."""

    exit_code = 2


class NumericalError(FwlightError, ArithmeticError):
    """Training left the finite numbers."""

    exit_code = 3


class CheckpointError(FwlightError):
    """A checkpoint is missing, damaged or unsafe."""

    exit_code = 4


class StorageError(FwlightError, OSError):
    """A disk or folder cannot be read or written."""

    exit_code = 5


def printable(text: str) -> str:
    r"""Return text for a terminal: what is no visible character is written out, as \x1b.

    Names of files, words of texts and what a server says are others': they must not move the
    cursor, paint over a line or turn its direction.
    """
    return "".join(
        letter if letter.isprintable() or letter in _HARMLESS else ascii(letter)[1:-1]
        for letter in text
    )


def one_line(text: object) -> str:
    """Return a message as one line of visible characters; a very long one lacks its middle."""
    line = printable(" ".join(str(text).split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} [...] {line[-_LONGEST // 2 :]}"
    return line


def error_line(message: object) -> str:
    """Return `error: ...`, as `one_line`."""
    return f"error: {one_line(message)}"
