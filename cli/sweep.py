"""`train.py -m`: every combination of values as a run of its own, made by a launcher."""

import hashlib
import itertools
import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.composition import compose_config
from cli.finished import settings
from cli.launchers import is_local, launcher, without_launcher
from cli.overrides import MOST_POINTS, parse
from cli.points import Point
from cli.sweep_progress import SweepProgress
from fwlight.errors import ConfigError
from fwlight.runs import as_text, read_run
from reports import one_key

_LONGEST, _READABLE = 250, 180
"""Bytes of a folder's name, which file systems bound at 255, and of one that was shortened."""


def expand(arguments: Sequence[str]) -> list[Point]:
    """Return the points of a sweep: the command line's values, and those of `sweep` in conf/.

    There `sweep` maps keys to their values, whose every combination is run, or it maps the names of
    curves to lists of such grids. A key on the command line replaces that of the grids.

    Raises:
        ConfigError: If a point is no valid configuration, or would start several processes.
    """
    what, where = without_launcher(arguments)
    values = dict(parse(argument, sweep=True) for argument in what)
    base = values.pop("run_dir", [None])[0]
    if (count := math.prod(map(len, values.values()))) > MOST_POINTS:
        raise ConfigError(f"-m would make {count} runs; more than {MOST_POINTS} are none")
    points = []
    for chosen in _combinations(values):
        first = compose_config([*_texts(chosen), *where])
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
                folder = Path(base or default_base, name)
                points.append(_point(folder, {**chosen, **more}, swept, where))
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
    progress = SweepProgress(len(points), finished=finished)
    failed = launcher(points[0].composition)(open_points, progress) if open_points else 0
    if failed is None:
        return 0
    _conclude(points, failed=bool(failed))
    return failed


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


def _point(
    folder: Path, values: Mapping[str, str], swept: Mapping[str, str], where: Sequence[str]
) -> Point:
    """Make one point and check it; `where` are the arguments of the launcher."""
    if not swept:
        raise ConfigError("-m found nothing to sweep: give a key several values, as seed=1,2,3")
    arguments = _texts({"resume": "auto", **values})
    arguments.append(f"run_dir={folder.resolve()}")
    composition = compose_config([*arguments, *where])
    trainer = composition.config["trainer"]
    one = trainer["devices"] == trainer["num_nodes"] == 1
    if is_local(composition) and (not one or trainer["strategy"].startswith(("ddp", "fsdp"))):
        raise ConfigError(
            f"-m starts single-process runs, not trainer={composition.choices['trainer']} "
            f"trainer.devices={trainer['devices']}: its processes would each run the whole sweep"
        )
    return Point(folder.name, arguments, composition, swept)


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
