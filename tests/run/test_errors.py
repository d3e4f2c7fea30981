"""Exceptions become exit codes and one line."""

import pickle
import signal
import sys

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import cli.commands
import cli.main
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
        (MemoryError(), 2),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
            ),
            2,
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), 2),
        (RuntimeError("Early stopping conditioned on metric `x` which is not available."), 2),
        (TypeError("a"), 1),
        (RuntimeError("a\nb\n  c"), 1),
    ],
)
def test_exception_has_its_exit_code_and_one_line(error, code):
    found, line = exit_code_and_line(error)
    assert found == code
    assert line.startswith("error: ")
    assert "\n" not in line


def test_lost_rank_is_told_without_places_in_cpp():
    error = torch.distributed.DistNetworkError(
        "The client socket has timed out after 60000ms while trying to connect to (n1, 15001).\n"
        "Exception raised from throwTimeoutError at TCPStore.cpp:12 (most recent call first):\n"
        "frame #0: c10::Error::Error(c10::SourceLocation)"
    )
    code, line = exit_code_and_line(error)
    assert code == 1
    assert line.endswith("trying to connect to (n1, 15001).)")
    assert "unexpected" not in line


def test_cause_that_is_known_counts():
    error = RuntimeError("could not build the data")
    error.__cause__ = DataError("bad text in line 7")
    assert exit_code_and_line(error) == (2, "error: bad text in line 7")


def test_unexpected_exception_says_how_to_see_more():
    line = exit_code_and_line(KeyError("size"))[1]
    assert "KeyError" in line
    assert "FWLIGHT_DEBUG=1" in line


FOREIGN = "a\x1b[2J\x07b\x9b31m\u202ec\r\udcffd\x00"
"""What clears a terminal, rings, colours, turns the line, and is no UTF-8."""


@pytest.mark.parametrize("kind", [DataError, OSError, RuntimeError])
@pytest.mark.parametrize("explain", [exit_code_and_line, cli.main.exit_code_and_line])
def test_what_others_wrote_does_nothing_in_a_terminal(kind, explain):
    _, line = explain(kind(f"{FOREIGN}: Kutúzov 中"))
    assert line.isprintable()
    assert r"a\x1b[2J\x07b\x9b31m\u202ec \udcffd\x00: Kutúzov 中" in line


def test_name_of_a_file_does_nothing_in_a_terminal(tmp_path, capsys):
    assert cli.main.main(["task.data=text", f"task.path={tmp_path}/a\x1b[2J"]) == 2
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.isprintable()
    assert r"a\x1b[2J does not exist" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_written_text_does_nothing_in_a_terminal(monkeypatch, capsys, terminal):
    text = "a\x1b[2J b\n\tc \u0645\u200c\u0646"
    monkeypatch.setattr(cli.commands, "act", lambda *_, **__: {"text": text})
    monkeypatch.setattr(cli.commands, "check_files", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert cli.main.main([]) == 0
    shown = capsys.readouterr().out.removesuffix("\n")
    assert shown == (text.replace("\x1b", r"\x1b") if terminal else text)


def test_line_is_short_and_printable_whatever_it_quotes():
    for error in (
        ConfigError("key=" + "x" * 100_000),
        TypeError("\x1b[31m\u2028 \udcff\0" + "y" * 9999),
    ):
        line = exit_code_and_line(error)[1]
        assert len(line) < 5000
        assert line.isprintable()
        line.encode("utf-8")
