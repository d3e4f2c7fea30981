"""Errors that end a run with one line for the user and a meaningful exit code."""


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
