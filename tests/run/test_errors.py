"""Exceptions become exit codes and one line."""

import pickle
import signal

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fwlight.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericalError,
    StorageError,
)
from fwlight.run import exit_code_and_line
from fwlight.run.signals import Stopped


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (DataError("a"), 2),
        (NumericalError("a"), 3),
        (CheckpointError("a"), 4),
        (StorageError("a"), 5),
        (ValueError("a"), 2),
        (MisconfigurationException("a"), 2),
        (pickle.UnpicklingError("a"), 4),
        (OSError(28, "a"), 5),
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGTERM), 143),
        (Stopped(signal.SIGUSR1, saved_step=3), 138),
        (TypeError("a"), 1),
        (RuntimeError("a\nb\n  c"), 1),
    ],
)
def test_exception_has_its_exit_code_and_one_line(error, code):
    found, line = exit_code_and_line(error)
    assert found == code
    assert line.startswith("error: ")
    assert "\n" not in line


def test_cause_that_is_known_counts():
    error = RuntimeError("could not build the data")
    error.__cause__ = DataError("bad text in line 7")
    assert exit_code_and_line(error) == (2, "error: bad text in line 7")


def test_unexpected_exception_says_how_to_see_more():
    line = exit_code_and_line(KeyError("size"))[1]
    assert "KeyError" in line
    assert "FWLIGHT_DEBUG=1" in line
