"""torchrun: two agents that meet on this machine, and one whose process is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.processes import results, rows

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
RUN = (
    *("task=retrieval", "task.n_keys=4", "logger=none", f"trainer.max_steps={STEPS}"),
    *("trainer.log_every_n_steps=1", "trainer.val_check_interval=20", "callbacks=[none,slow]"),
    *("callbacks.checkpoint.every_n_train_steps=7", "trainer=ddp", "resume=auto"),
)
_SLOW = """\
import os, time
from lightning import Callback

class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(float(os.environ.get("PAUSE", "0")))
"""
_PATIENCE = 900
"""Seconds, on a machine that has much else to do."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("torchrun")
    (place / "conf" / "callbacks").mkdir(parents=True)
    (place / "conf" / "callbacks" / "slow.yaml").write_text("slow:\n  _target_: slow.Slow\n")
    (place / "slow.py").write_text(_SLOW)
    return place


def agent(place: Path, *flags: str, run_dir: Path, trainer: tuple[str, ...], pause: float = 0.0):
    """Start torchrun as the documentation does."""
    run = [f"--config-dir={place}/conf", *RUN, *trainer, f"run_dir={run_dir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "train.py"), *run],
        env={
            **{**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": str(pause)},
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def two_agents(place: Path, name: str, flags: list[list[str]]) -> Path:
    folder = place / name
    trainer = ("trainer.num_nodes=2", "trainer.devices=1")
    agents = [
        agent(place, "--nnodes=2", "--nproc-per-node=1", *own, run_dir=folder, trainer=trainer)
        for own in flags
    ]
    for one in agents:
        _, err = one.communicate(timeout=_PATIENCE)
        assert one.returncode == 0, err
    return folder


@pytest.fixture(scope="module")
def static(place):
    """The run of two agents that know where the first one is."""
    meet = ["--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    return two_agents(place, "static", [[*meet, f"--node-rank={rank}"] for rank in range(2)])


def test_agents_that_find_each_other_run_as_those_that_are_told(place, static, free_port):
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port}", "--rdzv-id=fwlight"]
    found = two_agents(place, "c10d", [meet, meet])
    assert rows(found) == rows(static)
    assert results(found) == results(static)


def test_rank_that_is_killed_is_started_again_and_goes_on(place, static):
    folder = place / "killed"
    flags = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    whole = agent(place, *flags, run_dir=folder, trainer=("trainer.devices=2",), pause=0.3)
    end = time.monotonic() + _PATIENCE
    table = folder / "metrics.csv"
    while not table.exists() or max((k for k, _ in rows(folder)), default=0) < 10:
        assert time.monotonic() < end
        assert whole.poll() is None, whole.communicate()
        time.sleep(0.1)
    os.kill(_process_of_rank(1, whole.pid), signal.SIGKILL)
    _, err = whole.communicate(timeout=_PATIENCE)
    assert whole.returncode == 0, err
    assert rows(folder) == rows(static)
    assert results(folder) == results(static)


def _process_of_rank(rank: int, agent: int) -> int:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
