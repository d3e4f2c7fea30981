"""Sentences to translate, from files and pipes."""

import os
import threading

import pytest

from fwlight import pipes
from fwlight.errors import DataError
from fwlight.run.text import read_lines


def test_pipe_is_read_to_its_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "the old dog\n\nsees\n" * 10_000
    writer = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
    writer.start()
    assert read_lines(str(pipe)) == ["the old dog", "", "sees"] * 10_000


def test_pipe_that_nobody_writes_to_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes, "WRITER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    ended = []

    def read():
        with pytest.raises(DataError, match="pipe is a pipe that nobody writes to"):
            read_lines(str(tmp_path / "pipe"))
        ended.append(True)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(30)
    assert ended
