"""Runs as jobs of SLURM's: one readable file for sbatch, of one run or of a sweep as an array.

A run that is told to stop, by SIGUSR1 before its time is over or by SIGTERM for another job, saves
and ends with 138 or 143; the job is put into the queue again then, and goes on.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cli.folders import CONF
from cli.points import Point
from cli.sweep_progress import SweepProgress
from fwlight.errors import ConfigError, StorageError

_GO_ON = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "PREEMPTED"}
_GO_ON |= {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT"}
_FIRST, _MOST = 1.0, 30.0
"""Seconds between two looks at the queue, which get longer."""


def run(
    points: Sequence[Point],
    progress: SweepProgress,
    *,
    wait: bool,
    **options: Any,
) -> int | None:
    """Submit the runs; wait for them and return the first exit code that is not 0, if asked to.

    Args:
        points: One run, or those of a sweep, which all get the same room.
        progress: Is told which runs have begun and ended.
        wait: None is returned at once otherwise.
        options: The other keys of conf/launcher/slurm.yaml.

    Raises:
        ConfigError: There is no sbatch, no squeue to wait with, or the job is refused.
        StorageError: The file cannot be written.
    """
    for program in ("sbatch", "squeue") if wait else ("sbatch",):  # before there is a job
        if shutil.which(program) is None:
            raise ConfigError(
                f"launcher=slurm needs {program}, which this machine does not have: start it on "
                "one of the cluster's, or use launcher=local"
            )
    alone = not points[0].swept
    folder = points[0].folder if alone else points[0].folder.parent
    path = folder.with_name(f"{folder.name}.sbatch") if alone else folder / "sweep.sbatch"
    text = script(points, **options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for point in points:
            point.log.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    job = _call("sbatch", "--parsable", str(path)).partition(";")[0].strip()
    print(f"job {job} of {path}", flush=True)
    if not wait:
        print(
            f"look: squeue --jobs={job}; python -m fwlight.runs {shlex.quote(str(folder))}\n"
            f"stop: scancel {job}\n"
            "end:  the same command again shows what is finished, and submits the rest",
            flush=True,
        )
        return None
    try:
        return _wait(job, points, progress)
    except KeyboardInterrupt:
        print(f"job {job} goes on; stop it with scancel {job}", flush=True)
        return 130


def script(
    points: Sequence[Point],
    *,
    partition: str | None,
    account: str | None,
    time: str | None,
    stop_before: int,
    cpus: int,
    gpus: str | None,
    memory: str | None,
    at_a_time: int | None,
    modules: Sequence[str],
    lines: Sequence[str],
) -> str:
    """Return the file for sbatch; the arguments are the keys of conf/launcher/slurm.yaml.

    Raises:
        ConfigError: A value has a line break, or points need another room than others.
    """
    _check_time(time, stop_before)
    nodes, devices, on_gpu = _room(points)
    array = None
    if points[0].swept:
        array = f"0-{len(points) - 1}" + (f"%{at_a_time}" if at_a_time else "")
    options = {
        "job-name": points[0].folder.parent.name if array else points[0].name,
        "array": array,
        "nodes": nodes,
        "ntasks-per-node": devices,
        "cpus-per-task": cpus,
        "gpus-per-node": gpus or (devices if on_gpu else None),
        "mem": memory,
        "partition": partition,
        "account": account,
        "time": time,
        "signal": f"USR1@{stop_before}" if stop_before else None,
        "output": "/dev/null",  # the script names the logs
        "chdir": Path.cwd(),
    }
    options = [f"#SBATCH --{k}={_quoted(f'launcher {k}', v)}" for k, v in options.items() if v]
    further = [_one_line("launcher.lines", line) for line in lines]
    loaded = [f"module load {_quoted('launcher.modules', module)}" for module in modules]
    if array:
        cases = [f"{i})\n{_run_of(point)}\n;;" for i, point in enumerate(points)]
        what = "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"])
    else:
        what = _run_of(points[0])
    parts = [
        "#!/bin/bash",
        *options,
        "#SBATCH --requeue --open-mode=append",
        *(line for line in further if line.startswith("#SBATCH")),
        "",
        what,
        'exec >>"$log" 2>&1',
        *loaded,
        'export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"',
        *(line for line in further if not line.startswith("#SBATCH")),
        "[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || run+=(resume=auto)",
        'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" "${run[@]}"',
        "code=$?",
        "# 138 (SIGUSR1) and 143 (SIGTERM): it was told to stop, has saved and goes on later.",
        '[[ $code != 138 && $code != 143 ]] || scontrol requeue "$SLURM_JOB_ID"',
        "exit $code",
    ]
    return "\n".join(parts) + "\n"


def _run_of(point: Point) -> str:
    command = [sys.executable, str(CONF.parent / "train.py"), *point.command, "launcher=local"]
    words = " ".join(_quoted("an argument", word) for word in command)
    return f"log={_quoted('run_dir', point.log)}\nrun=({words})"


def _room(points: Iterable[Point]) -> tuple[int, int, bool]:
    """Return how many nodes and processes on each every run needs, and whether those need GPUs."""
    trainers = [point.composition.config["trainer"] for point in points]
    rooms = {(t["num_nodes"], str(t["devices"]), t["accelerator"]) for t in trainers}
    if len(rooms) > 1:
        raise ConfigError(
            "the runs of a sweep are one array, and need the same trainer.num_nodes, "
            "trainer.devices and trainer.accelerator"
        )
    devices = trainers[0]["devices"]
    if devices == "auto":
        raise ConfigError("launcher=slurm needs a number as trainer.devices, which is auto")
    n = len(devices) if isinstance(devices, list) else devices
    return trainers[0]["num_nodes"], n, trainers[0]["accelerator"] in ("gpu", "cuda")


def _check_time(text: str | None, stop_before: int) -> None:
    """Check that a run has time to get on before it is stopped, and put into the queue again."""
    if text is None:
        return
    days, _, rest = text.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    # SLURM counts from the left in hours after days, from the right in seconds, alone in minutes.
    units = (3600, 60, 1) if days else {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    seconds = 86400 * int(days or 0) + sum(n * u for n, u in zip(numbers, units, strict=False))
    if seconds < stop_before + 120:  # SLURM may send the signal a minute early
        raise ConfigError(
            f"launcher.time={text} is not two minutes longer than launcher.stop_before="
            f"{stop_before} seconds: a run would be stopped as soon as it has begun"
        )


def _quoted(name: str, value: object) -> str:
    return shlex.quote(_one_line(name, str(value)))


def _one_line(name: str, text: str) -> str:
    if len(text.splitlines()) > 1 or re.search(r"[\n\r\0]", text):
        raise ConfigError(f"{name} {text!r} has a line break, which a job's file cannot hold")
    return text


def _call(*words: str) -> str:
    """Return what a program of SLURM's prints."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise ConfigError(f"{words[0]} cannot be started: {error.strerror or error}") from error
    if done.returncode:
        told = "; ".join(
            line.removeprefix(f"{words[0]}: error: ")
            for line in (done.stderr or done.stdout).splitlines()
        )
        raise ConfigError(f"{words[0]} refuses: {told or f'exit code {done.returncode}'}")
    return done.stdout


def _wait(job: str, points: Sequence[Point], progress: SweepProgress) -> int:
    """Wait until no run is in the queue; return the first exit code that is not 0."""
    left, running = dict(enumerate(points)), set[int]()
    failed, pause, shown = 0, _FIRST, time.monotonic()
    while left:
        time.sleep(pause)
        pause = min(pause * 1.5, _MOST)
        if (states := _states(job)) is None:
            continue
        for index, point in list(left.items()):
            state, code = states.get(index, ("GONE", 1))
            if state == "PENDING":
                continue
            if index not in running:
                running.add(index)
                progress.started(point.folder)
            if state in _GO_ON:
                continue
            if state == "GONE":  # it ended long ago, or as we could not ask
                code = 0 if point.finished() else 1
            elif state != "COMPLETED":
                code = code or 1
            failed = failed or code
            del left[index]
            progress.ended(point.folder, point.result(code))
        if time.monotonic() - shown > progress.every:
            progress.show()
            shown = time.monotonic()
    return failed


def _states(job: str) -> dict[int, tuple[str, int]] | None:
    """Return state and exit code of each run that is in the queue, or was a moment ago.

    None means that the queue cannot be asked now.
    """
    columns = "--Format=ArrayTaskID:30,State:30,exit_code:30"
    try:
        listed = _call("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", columns)
    except ConfigError as error:
        return {} if "Invalid job id" in str(error) else None  # over long ago; not there for now
    found = {}
    for line in listed.splitlines():
        index, state, code = line.split()
        ended = os.waitstatus_to_exitcode(int(code))
        found[int(index) if index.isdigit() else 0] = state, 128 - ended if ended < 0 else ended
    return found
