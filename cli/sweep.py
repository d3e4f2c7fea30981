"""`train.py -m`: every combination of values as a run of its own, one process per core."""

import hashlib
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli.composition import Composition, compose_config
from cli.finished import is_finished, settings
from cli.folders import CONF, own_arguments
from cli.overrides import MOST_POINTS, parse
from cli.sweep_progress import SweepProgress
from fwlight.errors import ConfigError
from fwlight.runs import as_text, read_run
from reports import one_key

_LONGEST, _READABLE = 250, 180
"""Bytes of a folder's name, which file systems bound at 255, and of one that was shortened."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """What the swept keys are, as a folder name."""
    arguments: list[str]
    composition: Composition
    swept: Mapping[str, str]
    """Value of each swept key, as typed; of several curves, the `curve` too."""

    @property
    def command(self) -> list[str]:
        """The whole command line of the run."""
        return [*own_arguments(), *self.arguments]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.composition.config["run_dir"])

    def finished(self) -> bool:
        """Say whether its folder holds the summary of a run with these very settings."""
        return is_finished(self.folder, self.composition)


def expand(arguments: Sequence[str]) -> list[Point]:
    """Return the points of a sweep: the command line's values, and those of `sweep` in conf/.

    There `sweep` maps keys to their values, whose every combination is run, or it maps the names of
    curves to lists of such grids. A key on the command line replaces that of the grids.

    Raises:
        ConfigError: If a point is no valid configuration, or would start several processes.
    """
    values = dict(parse(argument, sweep=True) for argument in arguments)
    base = values.pop("run_dir", [None])[0]
    if (count := math.prod(map(len, values.values()))) > MOST_POINTS:
        raise ConfigError(f"-m would make {count} runs; more than {MOST_POINTS} are none")
    points = []
    for chosen in _combinations(values):
        first = compose_config(_texts(chosen))
        default_base = f"runs/sweep_{first.choices.get('experiment') or first.choices['task']}"
        for curve, grids in _curves(first.config["sweep"]):
            inner = [_grid(grid, given=values) for grid in grids]
            varied = {key for key in chosen if len(values[key]) > 1}
            varied |= {key for grid in inner for key in grid if not curve or _varies(key, inner)}
            combinations: list[dict[str, str]] = []
            for more in itertools.chain.from_iterable(map(_combinations, inner)):
                if more in combinations:  # grids overlap where the command line replaces a key
                    continue
                combinations.append(more)
                swept = {k: text for k, text in (chosen | more).items() if k in varied}
                name = _name(curve, swept)
                swept = {"curve": curve, **swept} if curve else swept
                points.append(_point(base or default_base, name, {**chosen, **more}, swept))
    if len({point.folder for point in points}) < len(points):
        raise ConfigError("two points of the sweep differ only in characters no folder name has")
    return points


def run_sweep(arguments: Sequence[str]) -> int:
    """Run the points that are not finished and return the first exit code that is not 0.

    At the end the runs are listed side by side, and what the configuration names as `report` is
    called with the sweep's folder; without one, a single swept key is drawn.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    points = expand(arguments)
    open_points = [point for point in points if not point.finished()]
    finished = len(points) - len(open_points)
    print(f"{len(points)} runs, {finished} of them finished before", flush=True)
    on_cpu = all(point.composition.config["trainer"]["accelerator"] == "cpu" for point in points)
    progress = SweepProgress(len(points), finished=finished)
    failed = _run(open_points, progress, workers=cores() if on_cpu else 1)
    _conclude(points, failed=bool(failed))
    return failed


def cores() -> int:
    """How many cores this process may use; not every system bounds that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _conclude(points: Sequence[Point], *, failed: bool) -> None:
    """Show the runs side by side, and make the report."""
    folder = points[0].folder.parent
    runs = []
    for point in points:
        run = read_run(point.folder)
        # One that failed before its first update has left nothing.
        runs.append(run if run.settings else replace(run, settings=settings(point.composition)))
    keys = list(dict.fromkeys(key for point in points for key in point.swept))
    print("\n" + as_text(runs, keys=keys), end="", flush=True)
    report = points[0].composition.config["report"]
    if report is not None:
        from cli.building import build

        if failed:
            print("the report is of the runs that are finished", flush=True)
        build("report", report, folder)
    elif len(others := [key for key in keys if key != "seed"]) < 2:
        (key,) = others or ["seed"]
        values = [(point.swept.get(key, ""), run) for point, run in zip(points, runs, strict=True)]
        if (told := one_key.report(folder, key, values)) is not None:
            print(told, flush=True)


def _run(points: list[Point], progress: SweepProgress, *, workers: int) -> int:
    # Each run is a process of its own, forked from one that has imported what all of them need.
    # That one has a single thread, and so have its runs: they share the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli.building", "fwlight.run"])
    waiting, failed = list(points), 0
    running: dict[Any, Point] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                point = waiting.pop(0)
                process = context.Process(target=_run_point, args=(point.command, _log(point)))
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
                result = f"exit code {code}" if code else "done"
                progress.ended(point.folder, f"{point.name}: {result} ({_log(point)})")
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


def _curves(sweep: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, str]]]]:
    """Return the named curves of a sweep, or its one grid without a name."""
    curves = [isinstance(grids, list) for grids in sweep.values()]
    if not any(curves):
        return [("", [sweep])]
    for name, grids in sweep.items():
        if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
            raise ConfigError(
                f"sweep.{name} is no list of grids: write key: 'a,b', or curve: [{{key: 'a,b'}}]"
            )
    return list(sweep.items())


def _grid(grid: Mapping[str, str], *, given: Mapping[str, list[str]]) -> dict[str, list[str]]:
    pairs = [parse(f"{key}={text}", sweep=True) for key, text in grid.items()]
    return {key: texts for key, texts in pairs if key not in given}


def _varies(key: str, grids: Sequence[Mapping[str, list[str]]]) -> bool:
    return len({text for grid in grids for text in grid.get(key, [""])}) > 1


def _point(base: str, name: str, values: Mapping[str, str], swept: Mapping[str, str]) -> Point:
    """Make one point and check it."""
    if not name:
        raise ConfigError("-m found nothing to sweep: give a key several values, as seed=1,2,3")
    arguments = _texts({"resume": "auto", **values})
    arguments.append(f"run_dir={Path(base, name).resolve()}")
    composition = compose_config(arguments)
    trainer = composition.config["trainer"]
    one = trainer["devices"] == trainer["num_nodes"] == 1
    if not one or trainer["strategy"].startswith("ddp"):
        raise ConfigError(
            f"-m starts single-process runs, not trainer={composition.choices['trainer']} "
            f"trainer.devices={trainer['devices']}: its processes would each run the whole sweep"
        )
    return Point(name, arguments, composition, swept)


def _name(curve: str, swept: Mapping[str, str]) -> str:
    """Name a point by its swept keys; one too long for a folder keeps the end of every key.

    It ends in a digest then, as what was left out may be what tells it from another point.
    """
    parts = [curve] * bool(curve) + [f"{key}-{value}" for key, value in swept.items()]
    name = re.sub(r"[^\w.-]+", "_", "__".join(parts))
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    short = [curve] * bool(curve)
    short += [f"{re.split('[./]', key)[-1]}-{value}" for key, value in swept.items()]
    room = max(4, (_READABLE - len(digest)) // len(short) - 2)
    cut = [re.sub(r"[^\w.-]+", "_", part).encode()[:room].decode(errors="ignore") for part in short]
    return "__".join(cut).encode()[:_READABLE].decode(errors="ignore") + f"__{digest}"


def _combinations(values: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    for texts in itertools.product(*values.values()):
        yield dict(zip(values, texts, strict=True))


def _texts(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in values.items()]


def _log(point: Point) -> Path:
    return point.folder.with_name(f"{point.name}.log")
