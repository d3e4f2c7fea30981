"""A long training of small steps with all that goes with one: memory, open files, threads.

python -m tests.faults.soak FOLDER [steps=20000]

Exit code 1 if memory grows by 1 MB per 1,000 steps or more after the first quarter, or if there
are more open files or threads at the end than there.
"""

import json
import os
import sys
import threading
from pathlib import Path

from lightning import Callback

import train
from fwlight import run
from fwlight.lightning_internals import completes_update
from tests.faults.victims import Training

EVERY = 100


class Watch(Callback):
    """Notes step, resident megabytes, open files and threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % EVERY == 0 and completes_update(trainer):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            files = len(os.listdir("/proc/self/fd"))
            self.rows.append((trainer.global_step, megabytes, files, threading.active_count()))
            if trainer.global_step % 1000 == 0:
                self.path.write_text(json.dumps(self.rows))


def slope(rows) -> float:
    """Megabytes per 1,000 steps, by least squares."""
    steps, values = ([row[i] for row in rows] for i in (0, 1))
    x, y = sum(steps) / len(steps), sum(values) / len(values)
    above = sum((s - x) * (v - y) for s, v in zip(steps, values, strict=True))
    return 1000 * above / sum((s - x) ** 2 for s in steps)


def main(folder: Path, *, steps: int = 20_000) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    watch, original = Watch(folder / "memory.json"), run.run_callbacks
    run.run_callbacks = lambda *args, **settings: [*original(*args, **settings), watch]
    changed = [
        "trainer.val_check_interval=200",
        "callbacks.checkpoint.every_n_train_steps=100",
        "trainer.accumulate_grad_batches=1",
    ]
    arguments = [*Training(folder, steps=steps).arguments, *changed, f"run_dir={folder / 'run'}"]
    code = train.main(arguments)
    if code:
        return code
    settled = [row for row in watch.rows if row[0] > steps // 4]
    first, last, growth = settled[0], settled[-1], slope(settled)
    print(
        f"{steps} steps: {growth:+.3f} MB per 1,000 steps from step {first[0]} on "
        f"({first[1]:.0f} to {last[1]:.0f} MB); open files {first[2]} to {last[2]}, "
        f"threads {first[3]} to {last[3]}"
    )
    return int(growth >= 1 or last[2] > first[2] or last[3] > first[3])


if __name__ == "__main__":
    settings = dict(argument.split("=") for argument in sys.argv[2:])
    sys.exit(main(Path(sys.argv[1]), **{key: int(value) for key, value in settings.items()}))
