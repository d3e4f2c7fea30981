"""train.py, or another program, as processes of its own: started, killed, waited for, looked at.

They are forked from a process that has imported what they need, so that one costs a tenth of a
second instead of five; the ranks that a process starts are started as always.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

ROOT = Path(__file__).resolve().parents[2]
INJECTED = ROOT / "tests" / "faults" / "injected.py"

os.environ.setdefault("OMP_NUM_THREADS", "1")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["cli.building", "fwlight.run", "fwlight.training.lm", "tasks.lm", "torch.utils.tensorboard"]
)

TINY = (
    *("size=tiny", "task.batch_size=4", "task.seq_len=8", "task.min_count=1", "task.data=text"),
    *("trainer.max_steps=24", "trainer.val_check_interval=7", "trainer.log_every_n_steps=1"),
    *("optimizer.warmup_steps=4", "callbacks.checkpoint.every_n_train_steps=5"),
    "callbacks.text_samples.max_new_tokens=3",
)
"""A training of seconds that has everything: dropout, evaluations, checkpoints, samples."""

TWO = ("trainer=ddp", "trainer.devices=2")


@dataclass
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines for the user."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("warning: ")]


class Running:
    """A process, leader of a process group that its ranks belong to."""

    def __init__(
        self,
        arguments,
        *,
        folder,
        program=None,
        fault=None,
        out=None,
        cwd=None,
        environment=MappingProxyType({}),
    ):
        """Start train.py or another program; what is None in `environment` is taken out of it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files = Path(out or folder / "stdout"), folder / "stderr"
        environment = {**environment, **({"FAULT": json.dumps(fault)} if fault else {})}
        program = program or (INJECTED if fault else ROOT / "train.py")
        words = [str(program), *map(str, arguments)]
        self._started = time.monotonic()
        self._process = CONTEXT.Process(
            target=_be, args=(words, environment, str(cwd or folder), *map(str, self._files))
        )
        self._process.start()
        self.pid = self._process.pid

    def send(self, signum):
        os.kill(self.pid, signum)

    def wait(self, timeout=60) -> Ended:
        self._process.join(timeout)
        seconds = time.monotonic() - self._started
        if self._process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s: {self._files[1].read_text()}")
        out, err = (f.read_text(errors="replace") if f.is_file() else "" for f in self._files)
        return Ended(self._process.exitcode, out, err, seconds)

    def members(self) -> list[int]:
        """Processes of the group."""
        return _group(self.pid)

    def orphans(self, patience=5.0) -> list[int]:
        """Processes of the group that are still there after so many seconds."""
        until = time.monotonic() + patience
        while (alive := _group(self.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        return alive


def run(
    arguments,
    *,
    folder,
    port=None,
    two=TWO,
    timeout=60,
    environment=MappingProxyType({}),
    **settings,
) -> Ended:
    """Start a process and wait for its end.

    With a port, both ranks start as torchrun starts them, with `two` among their arguments, and
    meet there. They must end alike; what is returned is the end of the first one, with what both
    of them said.
    """
    if port is None:
        alone = Running(arguments, folder=folder, environment=environment, **settings)
        return alone.wait(timeout)
    ranks = [
        Running(
            [*arguments, *two],
            folder=folder / str(rank),
            environment={
                **environment,
                **of_torchrun(rank, port),
                "TORCHELASTIC_ERROR_FILE": str(folder / str(rank) / "error.json"),
            },
            **settings,
        )
        for rank in range(2)
    ]
    first, second = (rank.wait(timeout) for rank in ranks)
    assert first.code == second.code, (first.err, second.err)
    return replace(first, out=first.out + second.out, err=first.err + second.err)


def of_torchrun(rank: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives to one of two processes."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"},
        **{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        "TORCHELASTIC_RUN_ID": "one",
    }


def _be(words, environment: Mapping[str, str | None], cwd, out, err) -> None:
    os.setpgid(0, 0)
    # What a shell starts in the background ignores it, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # what was imported may have asked for it
    os.chdir(cwd)
    sys.argv = words
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    runpy.run_path(words[0], run_name="__main__")


def _group(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


@contextmanager
def small_disk(path: Path, size: str):
    """A file system of its own of so many bytes; skips where it may not be mounted."""
    import subprocess

    import pytest

    path.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def rows(run_dir) -> dict[tuple[int, str], str]:
    """What metrics.csv holds, every row once, without what depends on the clock."""
    found = {}
    for line in (Path(run_dir) / "metrics.csv").read_text().splitlines()[1:]:
        step, metric, value = line.split(",")
        assert (int(step), metric) not in found, line
        if not metric.startswith("throughput/"):
            found[int(step), metric] = value
    return found


def results(run_dir) -> dict:
    """What summary.json holds, without what depends on the clock, and the settings."""
    summary = json.loads((Path(run_dir) / "summary.json").read_text())
    left_out = ("tokens_per_second", "wall_seconds", "settings")
    return {name: value for name, value in summary.items() if name not in left_out}


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_run(one: Path, other: Path, *, logs: bool = True) -> None:
    """Metrics, results, weights, optimiser and random state are equal bit for bit."""
    assert not logs or rows(one) == rows(other)
    assert results(one) == results(other)
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (
            torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (one, other)
        )
        for key in ("state_dict", "optimizer_states", "rng", "global_step"):
            assert equal(left[key], right[key]), f"{name}: {key}"


def equal(one, other) -> bool:
    """Whether nested containers hold equal tensors, and others equal values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
