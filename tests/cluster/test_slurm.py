"""Runs under a real SLURM of two virtual nodes: `make cluster`, where its packages are installed.

Each ends in the digits of a run that nothing happened to. What a run waits for in the tests is that
another one is at a certain step; a callback of the tests' own makes steps last.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli.main import main
from tests.cluster.virtual import Cluster, missing
from tests.faults import victims
from tests.faults.processes import results, rows, run

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

ROOT = Path(__file__).resolve().parents[2]
_SLOW = """\
import time
from pathlib import Path
from lightning import Callback

class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(float(Path(__file__).with_name("pause").read_text()))
"""
STEPS = 60
_PATIENCE = 600
"""Seconds, on a machine that has much else to do."""
RUN = (
    *("task=retrieval", "task.n_keys=4", "logger=none", f"trainer.max_steps={STEPS}"),
    *("trainer.log_every_n_steps=1", "trainer.val_check_interval=20", "callbacks=[none,slow]"),
    "callbacks.checkpoint.every_n_train_steps=7",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that the nodes share, with options of one's own."""
    place = tmp_path_factory.mktemp("shared")
    (place / "conf" / "callbacks").mkdir(parents=True)
    (place / "conf" / "callbacks" / "slow.yaml").write_text("slow:\n  _target_: slow.Slow\n")
    (place / "slow.py").write_text(_SLOW)
    (place / "pause").write_text("0")
    return place


@pytest.fixture(scope="module")
def whole(place):
    """A run that nothing happens to."""
    folder = place / "whole"
    ended = run(
        [f"--config-dir={place}/conf", *RUN, f"run_dir={folder}"],
        folder=place / "log",
        timeout=_PATIENCE,
    )
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def submit(cluster, place, monkeypatch, capsys):
    """Give a command line to the launcher, from a machine of the cluster; return the job."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)

    def submit(*arguments, pause: float = 0.0, wait: bool = False) -> str:
        (place / "pause").write_text(str(pause))
        where = ("launcher=slurm", f"launcher.wait={str(wait).lower()}")
        code = main([f"--config-dir={place}/conf", *RUN, *arguments, *where])
        said = capsys.readouterr()
        assert code == 0, said
        found = re.match(r"(?:\d+ runs, .*\n)?job (\d+) of ", said.out)
        assert found, said.out
        return found[1]

    return submit


def at_step(folder: Path, step: int):
    def holds() -> bool:
        return (folder / "metrics.csv").exists() and max(
            (k for k, _ in rows(folder)), default=0
        ) >= step

    return holds


def ended(cluster: Cluster, place: Path, job: str, state: str = "COMPLETED") -> None:
    def over() -> bool:
        states = set(cluster.state(job).split())
        if states == {"PENDING"}:  # put back once more, on a busy machine
            cluster.start_now(job)
        return states <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}

    cluster.wait_for(over, _PATIENCE)
    logs = "\n".join(f"{log}:\n{_text(log)[-3000:]}" for log in place.rglob("*.log"))
    assert {*cluster.state(job).split()} == {state}, logs


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert results(one) == results(other)


def of_nodes(cluster, place, name: str, nodes: int, *arguments: str) -> Path:
    """Start a run's processes on nodes with srun; its folder."""
    folder = place / name
    trainer = [f"trainer.num_nodes={nodes}", "trainer.devices=1"]
    cluster.call(
        *("srun", f"--nodes={nodes}", "--ntasks-per-node=1", sys.executable, f"{ROOT}/train.py"),
        *(f"--config-dir={place}/conf", *arguments, *trainer, f"run_dir={folder}"),
        code=0,
    )
    return folder


def assert_equal(one: Path, other: Path, *, rel: float) -> None:
    expected, found = results(one), results(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("nodes", [1, 2])
def test_srun_gives_the_numbers_of_one_process(cluster, place, whole, nodes):
    found = of_nodes(cluster, place, f"nodes{nodes}", nodes, *RUN, "trainer=ddp")
    assert_equal(whole, found, rel=1e-6)


def test_weights_sharded_over_two_nodes_give_the_numbers_of_one_process(cluster, place):
    text = victims.write_text(place / "text.txt")
    words = ("task=lm", "task.data=text", f"task.path={text}", "task.min_count=1")
    words += ("task.seq_len=24", "size=tiny", "size.dropout=0", "task.batch_size=4", "logger=none")
    words += ("trainer.max_steps=6", "trainer.val_check_interval=3", "callbacks=none")
    alone = place / "lm1"
    ended = run([*words, f"run_dir={alone}"], folder=place / "log", timeout=_PATIENCE)
    assert ended.code == 0, ended.err
    sharded = of_nodes(cluster, place, "lm2", 2, *words, "trainer=fsdp")
    assert_equal(alone, sharded, rel=1e-5)


def test_srun_on_a_node_that_nobody_knows_is_one_line(cluster, place):
    environment = {k: v for k, v in cluster.environment.items() if k != "MASTER_ADDR"}
    launch = ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, f"{ROOT}/train.py"]
    two = ["trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1", f"run_dir={place}/nowhere"]
    done = subprocess.run(
        [*launch, "task=retrieval", *two], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: MASTER_ADDR=n1, where the processes of the run meet")


def test_run_that_gives_way_to_another_job_goes_on(cluster, place, whole, submit):
    folder = place / "preempted"

    def take_over() -> None:
        cluster.wait_for(at_step(folder, 10), _PATIENCE)
        job = cluster.call("squeue", "-h", "-o", "%i", "--name=preempted")
        high = ("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
        cluster.call("sbatch", "--output=/dev/null", *high, code=0)
        cluster.hurry(job)

    taking = threading.Thread(target=take_over)
    taking.start()
    submit(f"run_dir={folder}", pause=0.3, wait=True)
    taking.join()
    assert_same(folder, whole)
    log = (place / "preempted.log").read_text()
    assert "stopped by SIGTERM after step" in log


def test_run_stops_before_its_time_is_over_and_goes_on(cluster, place, whole, submit):
    folder = place / "limited"
    # SLURM may ask a minute too early, and looks every 30 seconds.
    job = submit(
        *(f"run_dir={folder}", "launcher.time=3", "launcher.stop_before=60"), pause=120 / STEPS
    )
    stopped = "stopped by SIGUSR1 after step"
    cluster.wait_for(lambda: stopped in _text(place / "limited.log"), _PATIENCE)
    (place / "pause").write_text("0")  # a slow machine would need its three minutes often
    ended(cluster, place, job)
    assert_same(folder, whole)


def test_run_that_is_cancelled_has_saved_and_stays_away(cluster, place, whole, submit):
    folder = place / "cancelled"
    job = submit(f"run_dir={folder}", pause=0.3)
    cluster.wait_for(at_step(folder, 10), _PATIENCE)
    cluster.call("scancel", job, code=0)
    ended(cluster, place, job, "CANCELLED")
    assert "stopped by SIGTERM after step" in _text(place / "cancelled.log")
    ended(cluster, place, submit(f"run_dir={folder}", "resume=auto"))
    assert_same(folder, whole)


def test_sweep_is_an_array_of_which_one_is_killed(cluster, place, whole, submit, capsys):
    folder = place / "sweep"
    sweep = ("-m", "seed=1,2,3,4,5,6", f"run_dir={folder}")
    job = submit(*sweep, pause=0.2)
    cluster.wait_for(at_step(folder / "seed-1", 10), _PATIENCE)
    os.kill(_process_of(folder / "seed-1"), signal.SIGKILL)
    cluster.wait_for(lambda: cluster.state(f"{job}_0") == "FAILED", 60)
    cluster.call("scontrol", "requeue", f"{job}_0", code=0)
    cluster.hurry(f"{job}_0")
    ended(cluster, place, job)
    assert_same(folder / "seed-1", whole)
    assert main([f"--config-dir={place}/conf", *RUN, *sweep, "launcher=slurm"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 runs, 6 of them finished before\n")
    assert len(re.findall("^seed-", out, re.MULTILINE)) == 6, out


def _process_of(run_dir: Path) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        words = [b""]
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (process / "cmdline").read_bytes().split(b"\0")
        if words[0] == sys.executable.encode() and f"run_dir={run_dir}".encode() in words:
            return int(process.name)
    raise AssertionError(f"nothing runs in {run_dir}")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
