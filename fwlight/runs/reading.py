"""What a run is and how far it is, from the files in its folder.

Nothing is waited for and nothing is changed, so that runs may go on meanwhile. What is damaged says
nothing: such a run has not ended, and `resume=auto` completes it.
"""

import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from fwlight.errors import one_line

FINISHED, RUNNING, STOPPED, FAILED = "finished", "running", "stopped", "failed"
_ROW = re.compile(rb"^(\d+),((?:train|val|test|throughput)/[^,\n]+),([^,\n]+)\n", re.MULTILINE)
_TAIL = 1 << 14
_OF_SUMMARY = {
    "step": "global_step",
    "seconds": "wall_seconds",
    "tokens_per_second": "tokens_per_second",
}
_WITHOUT_RESULT = re.compile(
    r"(run_dir|resume|output|rank_timeout|(launcher|logger|sweep|report|network|module)\b.*"
    r"|callbacks\.(progress|throughput)\b.*|(.*\.)?_[^.]*)$"
)
"""Keys of config.yaml that tell no two runs apart, or repeat others."""


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    name: str
    """Its folder, seen from the one that was asked for."""
    status: str
    """`finished`, `running`, `stopped` or `failed`."""
    error: str | None = None
    """The line that it ended with, if it is not finished."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides its results: options by group, values by dotted key."""
    fingerprint: str | None = None
    """SHA-256 of its text, if it has one."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of a finished run those of its summary, else the last of each kind in metrics.csv."""
    step: int | None = None
    """Updates made."""
    seconds: float | None = None
    """It has worked so long; one that is not finished: since it was started last."""
    tokens_per_second: float | None = None

    @property
    def max_steps(self) -> int | None:
        """Updates that it is to make."""
        steps = self.settings.get("trainer.max_steps")
        return steps if type(steps) is int and steps > 0 else None

    @property
    def monitor(self) -> str:
        """The metric, without `val/`, whose best value is the run's result."""
        return str(self.settings.get("callbacks.checkpoint.monitor", "val/loss")).removeprefix(
            "val/"
        )


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield, by name, every folder of a run at or below a folder.

    A run of a sweep that failed before its first update has none; what it has is its log.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and name not in ("checkpoints", "tensorboard")
        )
        if {"summary.json", "metrics.csv"} & {*files} or {"config.yaml", ".lock"} <= {*files}:
            yield Path(place)
        for name in sorted(files):
            log = Path(place, name)
            if log.suffix == ".log" and log.stem not in folders and _error_in(log):
                yield log.with_suffix("")


def read_run(path: Path, *, below: Path | None = None) -> Run:
    """Return what the folder of a run says.

    Args:
        path: The folder, which need not exist if its run failed and left a log beside it.
        below: Its name is seen from there.
    """
    name = path.name if below is None or path == below else str(path.relative_to(below))
    # The lock first: a run that ends meanwhile has written its summary before it lets go.
    running = not (path / "summary.json").exists() and _in_use(path / ".lock")
    summary = None if running else _json(path / "summary.json")
    started = _json(path / "run.json") or {}
    kept = (started.get("settings"), (summary or {}).get("settings"))
    settings = next((x for x in kept if isinstance(x, dict)), None) or _configuration(path)
    fingerprint = started.get("fingerprint")
    known: dict[str, Any] = {
        "name": name,
        "settings": settings,
        "fingerprint": fingerprint if isinstance(fingerprint, str) else None,
    }
    if summary is not None:
        return Run(
            **known,
            status=FINISHED,
            metrics={k: v for k, v in summary.items() if "/" in k and _is_number(v)},
            **{name: _number(summary.get(key)) for name, key in _OF_SUMMARY.items()},
        )
    error = started.get("error") if path.is_dir() else _error_in(_log(path))
    ended = isinstance(error, str) and not running
    code = started.get("exit_code", 1)
    failed = ended and isinstance(code, int) and code < 128  # above: a signal's
    step, metrics = _logged(path, Run(**known, status=RUNNING).monitor)
    speed = metrics.pop("throughput/tokens_per_second", None)
    return Run(
        **known,
        status=RUNNING if running else FAILED if failed else STOPPED,
        error=one_line(error) if ended else None,
        metrics=metrics,
        step=step,
        seconds=_seconds(path, running=running),
        tokens_per_second=speed,
    )


def lower_is_better(metric: str) -> bool:
    """Whether the smallest value of a metric is the best."""
    return re.search(r"loss|ppl|bpb|error", metric) is not None


def _logged(path: Path, monitor: str) -> tuple[int | None, dict[str, float]]:
    """Return the last step in metrics.csv, the last value of each metric and the best of one."""
    step, found = None, {}
    choose, best = (min if lower_is_better(monitor) else max), f"val/best_{monitor}"
    for row in _ROW.finditer(_content(path / "metrics.csv") or b""):
        try:
            step, metric, value = int(row[1]), row[2].decode(), float(row[3])
        except ValueError:
            continue
        found[metric] = value
        if metric == f"val/{monitor}" and not math.isnan(value):
            found[best] = choose(value, found.get(best, value))
    if monitor == "loss" and "val/ppl" in found and best in found:
        found["val/best_ppl"] = math.exp(min(found[best], 700.0))
    return step, {k: v for k, v in found.items() if _is_number(v)}


def _configuration(path: Path) -> dict[str, Any]:
    """Return the keys of config.yaml, for a run of a version that wrote no run.json."""
    text = _content(path / "config.yaml")
    if text is None:
        return {}
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: ten times as fast
    try:
        config = loader(text).get_single_data()
        found = {key: value for key, value in _leaves(config) if not _WITHOUT_RESULT.fullmatch(key)}
        return {"task": config["task"]["_target_"].split(".")[1], **found}
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        _warn(path / "config.yaml")
        return {}


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _json(path: Path) -> dict[str, Any] | None:
    """Return an object, None where there is none."""
    text = _content(path)
    if text is None:
        return None
    try:
        return {**json.loads(text)}
    except (ValueError, TypeError, RecursionError):
        _warn(path)
        return None


def _content(path: Path) -> bytes | None:
    """Return what a file holds; a pipe would be waited for, and a device has no end."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return None


def _warn(path: Path) -> None:
    print(f"warning: {one_line(path)} is damaged and says nothing", file=sys.stderr)


def _in_use(lock: Path) -> bool:
    """Say whether a process holds the lock of a run's folder."""
    try:
        if not lock.is_file():  # a pipe would be waited for
            return False
        with _opened(lock) as file:
            # Others who look hold it too, for a moment; who trains holds it on.
            return not any(_free(file) for _ in range(3))
    except OSError:  # a file system without locks
        return False


def _opened(lock: Path) -> IO[bytes]:
    """Open a file that may be another user's; only to read it, NFS lets nobody lock it."""
    try:
        return lock.open("r+b")
    except OSError:
        return lock.open("rb")


def _free(lock: IO[bytes]) -> bool:
    if lock_descriptor(lock.fileno(), blocking=False):
        return True
    time.sleep(0.002)
    return False


def _seconds(path: Path, *, running: bool) -> float | None:
    try:
        end = time.time() if running else (path / "metrics.csv").stat().st_mtime
        return max(0.0, end - (path / ".lock").stat().st_mtime)
    except OSError:
        return None


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _error_in(log: Path) -> str | None:
    """Return the error that a log ends with, before what SLURM adds."""
    text = (_content(log) or b"")[-_TAIL:].decode(errors="replace").rstrip()
    lines = [x for x in text.splitlines() if not x.startswith(("srun: ", "slurmstepd: "))]
    return lines[-1] if lines and lines[-1].startswith("error: ") else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    return value if _is_number(value) else None
