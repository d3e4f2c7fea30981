"""Folders of many runs as train.py leaves them, finished or not, whole or damaged.

`python -m tests.run.many_runs FOLDER [300]` makes so many and says how long they take to be listed.
"""

import contextlib
import io
import json
import random
import sys
import time
from pathlib import Path

from filelock import lock_descriptor

from cli.composition import Composition, compose_config
from cli.finished import settings
from fwlight.runs.__main__ import main as list_runs

TASKS = {
    "lm": ("loss", "ppl"),
    "mqar": ("loss", "ppl", "acc"),
    "translation": ("loss", "bleu"),
    "retrieval": ("loss",),
}


def make_run(
    folder: Path,
    composition: Composition,
    *,
    status: str = "finished",
    step: int | None = None,
    values: dict[str, float] | None = None,
    fingerprint: str | None = None,
    rows: int = 3,
    earlier: bool = False,
) -> Path:
    """Write what a run leaves.

    Args:
        folder: The run's.
        composition: What was run.
        status: finished, stopped (by SIGTERM), killed (without a word) or failed.
        step: Updates made; None: all of them.
        values: Last value of each metric; others are made up.
        fingerprint: Of its text.
        rows: How often each metric is in metrics.csv.
        earlier: Whether it is of a version that wrote no run.json.
    """
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".lock").write_text("1")
    (folder / "config.yaml").write_text(composition.yaml(), encoding="utf-8")
    told = {"settings": settings(composition), "fingerprint": fingerprint}
    step = composition.config["trainer"]["max_steps"] if step is None else step
    last = {"train/loss": 1.0, "val/loss": 1.25, "throughput/tokens_per_second": 1000.0}
    last.update({f"memory_capacity/layer{i}/load": 0.5 for i in range(30)})
    last.update(values or {})
    lines = ["step,metric,value"]
    for row in range(rows, 0, -1):  # every value is a little better than the one before
        lines += [
            f"{max(step - row + 1, 0)},{name},{x * (1 + 0.1 * (row - 1))!r}"
            for name, x in last.items()
        ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if status == "finished":
        summary = {name: x for name, x in last.items() if name.startswith(("train/", "val/"))}
        summary |= {"val/best_loss": last["val/loss"], "global_step": step, "wall_seconds": 90.0}
        summary |= {"tokens_per_second": 1000.0, **(values or {}), "settings": told["settings"]}
        (folder / "summary.json").write_text(json.dumps(summary))
    elif status != "killed":
        code, line = {
            "failed": (3, "error: the loss of step 7 is not finite"),
            "stopped": (143, "error: stopped by SIGTERM; resume=auto goes on"),
        }[status]
        told |= {"exit_code": code, "error": line}
    if not earlier:
        (folder / "run.json").write_text(json.dumps(told))
    return folder


def make_many(folder: Path, n: int) -> None:
    """Make runs of four tasks, a fifth of them not finished, of which some are of earlier times."""
    draw = random.Random(0)
    models = ("delta_dpfp", "linear", "softmax", "deltanet", "gated_deltanet")
    for number in range(n):
        task, names = draw.choice(list(TASKS.items()))
        composition = compose_config(
            [
                f"task={task}",
                f"model={models[number % len(models)]}",
                f"seed={number % 3}",
                f"optimizer.lr={draw.choice((1e-3, 2e-3, 5e-3))}",
            ]
        )
        values = {f"{split}/{x}": draw.uniform(1, 9) for split in ("val", "test") for x in names}
        status = draw.choice(("finished",) * 12 + ("stopped", "killed", "failed"))
        make_run(
            folder / task / f"run{number:03}",
            composition,
            status=status,
            step=None if status == "finished" else 400,
            values=values,
            fingerprint=f"{task}{number % 2:0>60}" if task in ("lm", "translation") else None,
            rows=200,
            earlier=number % 10 == 0,
        )


@contextlib.contextmanager
def in_use(run: Path):
    """Hold the lock of a run's folder, as the process of a running one does."""
    with (run / ".lock").open("a+") as lock:
        lock_descriptor(lock.fileno())
        yield


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300
    if not place.exists():
        make_many(place, count)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = list_runs([str(place)])
    lines = len(out.getvalue().splitlines())
    print(f"{lines} lines, exit code {code}, in {time.perf_counter() - began:.2f} s")
