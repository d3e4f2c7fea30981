"""Runs of a sweep on this machine, one process per core."""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.folders import CONF
from cli.launch import cores
from cli.points import Point
from cli.sweep_progress import SweepProgress


def run(points: Sequence[Point], progress: SweepProgress) -> int:
    """Make the runs and return the first exit code that is not 0.

    Each is a process of its own, forked from one that has imported what all of them need. That one
    has a single thread, and so have its runs: they share the cores.
    """
    on_cpu = all(point.composition.config["trainer"]["accelerator"] == "cpu" for point in points)
    workers = cores() if on_cpu else 1
    os.environ["OMP_NUM_THREADS"] = "1"
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload(["cli.building", "fwlight.run"])
    waiting, failed = list(points), 0
    running: dict[Any, Point] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                point = waiting.pop(0)
                process = context.Process(
                    target=_run_point, args=([*point.command, "launcher=local"], point.log)
                )
                process.start()
                running[process] = point
                progress.started(point.folder)
            sentinels = [process.sentinel for process in running]
            if not multiprocessing.connection.wait(sentinels, timeout=progress.every):
                progress.show()
            for process in [process for process in running if process.exitcode is not None]:
                point, code = running.pop(process), process.exitcode
                code = 128 - code if code < 0 else code  # of signal -code, as a shell has it
                failed = failed or code
                progress.ended(point.folder, point.result(code))
    finally:
        for process in running:
            process.terminate()
    return failed


def _run_point(arguments: list[str], log: Path) -> None:
    """Be a run: what this process prints goes to the log."""
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    program = str(CONF.parent / "train.py")
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def _end_with_sweep() -> None:
    """Stop this run, as Ctrl-C would, when the sweep ends, even if it is killed."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
