"""What the default callbacks cost, and that they change no loss.

    python -m benchmarks.diagnostics [key=value ...]

Whole runs in one process, in turn with the default callbacks and with `callbacks=none`: the demo
unless the arguments say otherwise, with all its looks, figures and sampled texts. Prints the
seconds and processor seconds of every run and by how much the medians of the first kind are above
those of the second (on a machine with other work the latter are the steadier), then compares all
losses bit for bit. Exit code 1 if one differs.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

from cli.acting import act
from cli.composition import compose_config

REPEATS = 3
DEFAULTS = ("experiment=demo",)


Losses = dict[tuple[str, str], str]


def run(arguments: list[str], folder: Path) -> tuple[float, float, Losses]:
    """Train; return seconds, processor seconds, and the losses by step and name as text."""
    composition = compose_config([*arguments, f"run_dir={folder}"])
    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        act(composition)
    took = (time.perf_counter() - wall, time.process_time() - processor)
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return *took, {(step, name): value for step, name, value in rows if name.endswith("/loss")}


def main(arguments: list[str]) -> int:
    """Run both kinds in turn and compare."""
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = [x for x in DEFAULTS if x.partition("=")[0] not in given]
    common = [*defaults, *arguments, "trainer.log_every_n_steps=1"]
    kinds: dict[str, list[str]] = {"default callbacks": [], "callbacks=none": ["callbacks=none"]}
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    losses: list[Losses] = []
    with tempfile.TemporaryDirectory() as folder:
        # What is loaded and built once is not a matter of steps.
        run([*common, "trainer.max_steps=2", "trainer.val_check_interval=1"], Path(folder) / "warm")
        for repeat in range(REPEATS):
            for i, (kind, extra) in enumerate(kinds.items()):
                wall, processor, found = run([*common, *extra], Path(folder) / f"{repeat}-{i}")
                losses.append(found)
                seconds[kind].append((wall, processor))
                print(f"{kind:<18} {wall:8.2f} s {processor:8.2f} processor s", flush=True)
    watched, bare = (
        [statistics.median(column) for column in zip(*seconds[kind], strict=True)] for kind in kinds
    )
    slower = [100 * (x / y - 1) for x, y in zip(watched, bare, strict=True)]
    print(f"{'slower by':<18} {slower[0]:8.2f} % {slower[1]:8.2f} %")
    equal = all(found == losses[0] for found in losses)
    print(f"{len(losses[0])} losses equal bit for bit: {'yes' if equal else 'NO'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
