"""Waiting for jobs of SLURM's without a SLURM: programs of its names, and time that a test moves.

Between two looks at the queue the launcher sleeps; there the next thing happens to the job.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.finished import settings
from cli.main import main
from cli.sweep import expand

RUN = ("task=retrieval", "task.n_keys=4", "callbacks=none", "logger=none", "launcher=slurm")
UNREACHABLE = (
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "slurm_load_jobs error: Socket timed out on send/recv operation",
)
FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"

Event = Callable[[], object] | BaseException | str | dict[str, tuple[str, int]]


class Queue:
    """Programs that answer as SLURM's do about job 31, as `events` say, one a look."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events, self.slept = folder, list[Event](), list[float]()
        programs = {
            "sbatch": "echo '31;cluster'",
            "squeue": f'echo "$*" >>{folder}/asked\n. {folder}/answer',
            "scancel": f"touch {folder}/cancelled",
        }
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    def sleep(self, seconds: float) -> None:
        """Let the next event happen: states with wait statuses by array index, or an error."""
        assert self.events, "the launcher waits for something that is over"
        self.slept.append(seconds)
        event = self.events.pop(0)
        while callable(event):
            event()
            event = self.events.pop(0)
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, str):
            answer = f"echo 'squeue: error: {event}' >&2\nexit 1\n"
        else:
            rows = (f"{i:<30}{state:<30}{code:<30}" for i, (state, code) in event.items())
            answer = "".join(f"echo '{row}'\n" for row in rows)
        (self.folder / "answer").write_text(answer)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "FWLIGHT_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    queue = Queue(tmp_path / "bin")
    monkeypatch.setattr("cli.launchers.slurm.time.sleep", queue.sleep)
    return queue


def alone(state: str, status: int = 0) -> dict[str, tuple[str, int]]:
    """What the queue says of a job that is no array."""
    return {"N/A": (state, status)}


def finish(*seeds: int) -> None:
    """Leave what runs of a sweep leave that have come to their end."""
    for point in expand([*RUN, "seed=1,2,3", "run_dir=sweep"]):
        if int(point.swept["seed"]) in seeds:
            point.folder.mkdir(parents=True)
            text = json.dumps({"settings": settings(point.composition)})
            (point.folder / "summary.json").write_text(text)


def ends(out: str) -> list[str]:
    """The lines that say how a run ended, without their logs."""
    return [line.partition(" (")[0] for line in out.splitlines() if re.match("seed-.: ", line)]


@pytest.mark.parametrize(("state", "status", "code"), [("COMPLETED", 0, 0), ("FAILED", 2 << 8, 2)])
def test_job_is_followed_to_its_exit_code(queue, capsys, state, status, code):
    waiting = [alone("PENDING"), alone("CONFIGURING"), alone("RUNNING"), alone("COMPLETING")]
    queue.events = [*waiting, alone(state, status)]
    assert main([*RUN, "run_dir=run"]) == code
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"job 31 of {Path.cwd()}/run.sbatch"
    said = f"exit code {code}" if code else "done"
    assert f"run: {said} ({Path.cwd()}/run.log)" in out
    assert not queue.events
    asked = (queue.folder / "asked").read_text().splitlines()
    assert len(asked) == 5
    assert all("--states=all" in line and "--jobs=31 " in line for line in asked)
    # Less and less often.
    assert queue.slept == sorted(queue.slept)
    assert queue.slept[-1] > 2 * queue.slept[0]


def test_job_that_was_put_into_the_queue_again_is_not_over(queue):
    stopped = [alone("RUNNING"), alone("COMPLETING", 143 << 8), alone("PREEMPTED", 15)]
    again = [alone("REQUEUED"), alone("PENDING"), alone("RUNNING"), alone("COMPLETED")]
    queue.events = [*stopped, *again]
    assert main([*RUN, "run_dir=run"]) == 0
    assert not queue.events


def test_array_gives_the_first_exit_code_that_is_not_0(queue, capsys):
    ended = {
        "0": ("COMPLETED", 0),
        "1": ("FAILED", 4 << 8),
        "2": ("OUT_OF_MEMORY", 9),
        "3": ("TIMEOUT", 0),
        "4": ("CANCELLED", 15),
        "5": ("COMPLETED", 0),
    }
    running = dict.fromkeys(ended, ("RUNNING", 0))
    queue.events = [
        dict.fromkeys(ended, ("PENDING", 0)),
        {**running, "5": ("PENDING", 0)},
        {**running, "1": ended["1"]},
        {**running, "0": ended["0"], "1": ended["1"]},
        ended,
    ]
    assert main(["-m", *RUN, "seed=1,2,3,4,5,6", "run_dir=sweep"]) == 4
    out = capsys.readouterr().out
    first = ["seed-2: exit code 4", "seed-1: done"]
    then = ["seed-3: exit code 137", "seed-4: exit code 1", "seed-5: exit code 143", "seed-6: done"]
    assert ends(out) == [*first, *then]
    assert "\n2 of 6 runs done, 4 running" in out


def test_runs_that_the_queue_has_forgotten_are_what_their_folders_say(queue, capsys):
    queue.events = [
        {str(i): ("RUNNING", 0) for i in range(3)},
        # The queue forgets every run for itself, the job when nothing is left of it.
        lambda: finish(1),
        {"1": ("RUNNING", 0), "2": ("RUNNING", 0)},
        lambda: finish(3),
        FORGOTTEN,
    ]
    assert main(["-m", *RUN, "seed=1,2,3", "run_dir=sweep"]) == 1
    found = ends(capsys.readouterr().out)
    assert found == ["seed-1: done", "seed-2: exit code 1", "seed-3: done"]
    # The same command submits the one that failed.
    queue.events = [{"0": ("COMPLETED", 0)}]
    assert main(["-m", *RUN, "seed=1,2,3", "run_dir=sweep"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 runs, 2 of them finished before\n")
    assert "seed=2" in Path("sweep/sweep.sbatch").read_text()
    assert "seed=1" not in Path("sweep/sweep.sbatch").read_text()


def test_queue_that_does_not_answer_is_waited_out(queue, capsys):
    queue.events = [*UNREACHABLE, alone("RUNNING"), *UNREACHABLE * 6, alone("FAILED", 5 << 8)]
    assert main([*RUN, "run_dir=run"]) == 5
    assert not queue.events
    assert queue.slept[-1] == queue.slept[-2] == 30.0  # and no seldomer
    assert "refuses" not in capsys.readouterr().err


def test_interrupt_leaves_the_job(queue, capsys):
    queue.events = [alone("RUNNING"), KeyboardInterrupt()]
    assert main([*RUN, "run_dir=run"]) == 130
    said = capsys.readouterr()
    assert "job 31 goes on; stop it with scancel 31\n" in said.out
    assert not said.err
    assert not (queue.folder / "cancelled").exists()
