"""train.py where a standard stream is closed, full, broken or lacks characters."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.output import mend_streams
from fwlight.run.checkpoint_io import load_checkpoint
from train import main

ROOT = Path(__file__).resolve().parent.parent
TINY = ["size=tiny", "logger=none", "trainer.max_steps=2", "callbacks=none", "seed=3"]


def shell(redirection: str, *arguments: object, cwd: Path):
    """Run train.py with what a shell does to its streams."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
        ('| true; exit "${PIPESTATUS[0]}"', 0),
        (">/dev/full", 5),
    ],
)
def test_lost_stream_is_lost_output(redirection, code, tmp_path):
    done = shell(redirection, "--cfg", "size=tiny", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (2 if code else 0), done.stderr


@pytest.mark.fault(39)
@pytest.mark.parametrize("redirection", [">&-", "2>&-", '2>&1 | true; exit "${PIPESTATUS[0]}"'])
def test_mistake_keeps_its_exit_code_without_a_stream(redirection, tmp_path):
    done = shell(redirection, "size=huge", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""  # nor does the error go to the wrong stream
    assert done.stderr.startswith("error: ") or redirection != ">&-"


@pytest.mark.fault(39)
@pytest.mark.slow
def test_training_without_streams_writes_whole_files(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("the caf\u00e9 sat on the mat .\n" * 100, encoding="utf-8")
    arguments = [*TINY, "task.data=text", f"task.path={text}", "task.seq_len=8"]
    run = tmp_path / "caf\u00e9"
    done = shell("<&- >&- 2>&-", *arguments, f"run_dir={run}", cwd=tmp_path)
    assert done.returncode == 0
    assert (run / "metrics.csv").read_text().startswith("step,metric,value\n2,train/loss,")
    json.loads((run / "summary.json").read_text())
    load_checkpoint(run / "checkpoints" / "last.ckpt")
    for name in ("stdout", "stderr"):  # as PYTHONIOENCODING=ascii makes them
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    mend_streams()
    last = ["action=generate", f"ckpt={run}/checkpoints/last.ckpt", "generate.temperature=0"]
    assert main([*last, "prompt=the caf\u00e9"]) == 0
    assert written(sys.stdout).startswith(b"the caf\\xe9")
    assert written(sys.stderr) == b""
    assert main([*arguments, f"run_dir={run}"]) == 2
    assert b"caf\\xe9 already holds a run" in written(sys.stderr)


def written(stream) -> bytes:
    stream.flush()
    return stream.buffer.getvalue()


def test_argument_that_is_no_text_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), b"size=tiny", b"modle=\xff\x1b[31m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert len(done.stderr.splitlines()) == 1
