"""`train.py -m`: every combination of values as a run of its own, one process per core."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cli.composition import Composition, compose_config
from cli.overrides import CONF, parse
from fwlight.errors import ConfigError


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """What the swept keys are, as a folder name."""
    arguments: list[str]
    composition: Composition

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.composition.config["run_dir"])

    def finished(self) -> bool:
        """Say whether its folder holds the summary of a run with this very configuration."""
        if not (self.folder / "summary.json").is_file():
            return False
        stored = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        return _without_place(stored) == _without_place(self.composition.config)


def expand(arguments: Sequence[str]) -> list[Point]:
    """Return the points of a sweep: the command line's values, and those of `sweep` in conf/.

    Raises:
        ConfigError: If a point is no valid configuration, or would start several processes.
    """
    values = dict(parse(argument, sweep=True) for argument in arguments)
    base = values.pop("run_dir", [None])[0]
    points = []
    for chosen in _combinations(values):
        first = compose_config(_texts(chosen))
        inner = [parse(f"{key}={text}", sweep=True) for key, text in first.config["sweep"].items()]
        for more in _combinations({key: texts for key, texts in inner if key not in values}):
            swept = {key: text for key, text in chosen.items() if len(values[key]) > 1} | more
            points.append(_point(base or f"runs/sweep_{first.choices['task']}", chosen, swept))
    if len({point.folder for point in points}) < len(points):
        raise ConfigError("two points of the sweep differ only in characters no folder name has")
    return points


def run_sweep(arguments: Sequence[str]) -> int:
    """Run the points that are not finished and return the first exit code that is not 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    points = expand(arguments)
    open_points = [point for point in points if not point.finished()]
    print(f"{len(points)} runs, {len(points) - len(open_points)} of them finished before")
    on_cpu = all(point.composition.config["trainer"]["accelerator"] == "cpu" for point in points)
    workers = len(os.sched_getaffinity(0)) if on_cpu else 1
    running: dict[subprocess.Popen[bytes], Point] = {}
    codes: list[int] = []
    try:
        while open_points or running:
            while open_points and len(running) < workers:
                point = open_points.pop(0)
                running[_start(point)] = point
            process = _wait(running)
            point = running.pop(process)
            codes.append(process.returncode)
            result = "done" if process.returncode == 0 else f"exit code {process.returncode}"
            print(f"{point.name}: {result} ({_log(point)})", flush=True)
    finally:
        for process in running:
            process.terminate()
    return next((code for code in codes if code), 0)


def _point(base: str, chosen: Mapping[str, str], swept: Mapping[str, str]) -> Point:
    """Make one point and check it."""
    if not swept:
        raise ConfigError("-m found nothing to sweep: give a key several values, as seed=1,2,3")
    name = "__".join(f"{key}-{text}" for key, text in swept.items())
    name = re.sub(r"[^\w.-]+", "_", name)
    arguments = _texts({"resume": "auto", **chosen, **swept})
    arguments.append(f"run_dir={Path(base, name).resolve()}")
    composition = compose_config(arguments)
    trainer = composition.config["trainer"]
    one = trainer["devices"] == trainer["num_nodes"] == 1
    if not one or trainer["strategy"].startswith("ddp"):
        raise ConfigError(
            f"-m starts single-process runs, not trainer={composition.choices['trainer']} "
            f"trainer.devices={trainer['devices']}: its processes would each run the whole sweep"
        )
    return Point(name, arguments, composition)


def _combinations(values: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    for texts in itertools.product(*values.values()):
        yield dict(zip(values, texts, strict=True))


def _texts(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in values.items()]


def _without_place(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("run_dir", "resume")}


def _log(point: Point) -> Path:
    return point.folder.with_name(f"{point.name}.log")


def _start(point: Point) -> subprocess.Popen[bytes]:
    _log(point).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(CONF.parent / "train.py"), *point.arguments]
    with _log(point).open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def _wait(running: Mapping[subprocess.Popen[bytes], Point]) -> subprocess.Popen[bytes]:
    """Return the first process that ends."""
    while True:
        for process in running:
            if process.poll() is not None:
                return process
        time.sleep(0.2)
