"""Does the verdict on a memory agree with what is known of it? Trains, looks, and compares.

    python -m benchmarks.retrieval_verdicts [run_dir=runs/verdicts] [rows=elu-40,delta-20x400]

Setting 1 on both sides of the published limits (Schlag et al. 2021b, figure 2), and 20 keys written
400 times, far above d_dot in positions and far below it in keys, with the delta and the sum rule.
Prints a Markdown table; finished runs are not trained again.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from cli.building import build_parts
from cli.composition import compose_config
from cli.stored import recompose
from fwlight import run
from fwlight.diagnostics.verdict import HEALTHY, OVER_CAPACITY, RULE_LIMITED
from fwlight.run.actions.diagnosing import look
from train import main as train_main

DPFP = ("model=sum_dpfp", "model.read_eps=1e-6")
UPDATE = ("task.setting=update", "task.n_keys=20", "task.seq_len=400")


class Row(NamedTuple):
    """One memory of which the answer is known."""

    name: str
    expected: tuple[str, ...]
    arguments: tuple[str, ...]


def capacity(name: str, n_keys: int, expected: str, *arguments: str) -> Row:
    """Return a point of setting 1."""
    return Row(f"{name}-{n_keys}", (expected,), (*arguments, f"task.n_keys={n_keys}"))


ROWS = (
    *(
        capacity("elu", n, expected, "model=linear", "model.read_eps=1e-6")
        for n, expected in ((40, HEALTHY), (80, OVER_CAPACITY))
    ),
    *(
        capacity("dpfp1", n, expected, *DPFP, "model.feature_map.nu=1")
        for n, expected in ((80, HEALTHY), (160, OVER_CAPACITY))
    ),
    *(
        capacity("dpfp3", n, expected, *DPFP, "model.feature_map.nu=3")
        for n, expected in ((300, HEALTHY), (440, OVER_CAPACITY))
    ),
    Row(
        "delta-20x400",
        (HEALTHY, RULE_LIMITED),
        ("model=delta_dpfp", "model.feature_map.nu=1", *UPDATE),
    ),
    Row("sum-20x400", (RULE_LIMITED,), (*DPFP, "model.feature_map.nu=1", *UPDATE)),
)
BARE = ("task=retrieval", "callbacks.progress=null", "callbacks.dashboard=null", "logger=none")


def measure(row: Row, folder: Path) -> dict[str, Any]:
    """Train a row's memory unless it is there, and return what is found of it."""
    if not (folder / "summary.json").exists():
        code = train_main([*BARE, *row.arguments, f"run_dir={folder}", "resume=auto"])
        if code:
            raise SystemExit(code)
    ckpt = str(folder / "checkpoints" / "best.ckpt")
    checkpoint = run.load_checkpoint(ckpt)
    config = recompose(checkpoint.get("fwlight"), ["action=test", f"ckpt={ckpt}"]).config
    module, data = build_parts(config, checkpoint=checkpoint)
    run.load_weights(module, run.averaged(checkpoint), ckpt)
    data.setup("test")
    (found,) = look(module, data, sequences=20, draws=0)
    values = {name: float(x[0]) for name, x in found.heads.values.items() if x.ndim == 1}
    return {
        **values,
        "verdict": found.heads.verdicts[0],
        "d_dot": found.layer.memory.d_dot,
        "step": checkpoint["global_step"],
        "loss": checkpoint["metrics"]["val/loss"],
    }


def line(row: Row, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    agrees = "yes" if found["verdict"] in row.expected else "**no**"
    cells = [
        row.name,
        str(found["d_dot"]),
        f"{found['position_load/mean']:.2f}",
        f"{found['load/mean']:.2f}",
        f"{found['best/error']:.3f}",
        f"{found['last/scaled_error'] ** 2:.3f}",
        f"{found['queries/scaled_error'] ** 2:.3f}",
        f"{found['last/identified']:.3f}",
        f"{found['loss']:.4f}",
        " or ".join(row.expected) if len(row.expected) == 1 else f"not {OVER_CAPACITY}",
        found["verdict"],
        agrees,
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    """Measure all rows, or those that are asked for."""
    given = dict(argument.split("=", 1) for argument in arguments)
    chosen = given.get("rows", ",".join(row.name for row in ROWS)).split(",")
    compose_config([*BARE])  # a mistake in conf/ is found before anything is trained
    heading = (
        *("memory", "d_dot", "positions / d_dot", "different keys / d_dot", "best possible error"),
        *("recall error", "own queries' error", "identified", "validation loss"),
        *("expected", "verdict", "agrees"),
    )
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}", flush=True)
    for row in ROWS:
        if row.name in chosen:
            found = measure(row, Path(given.get("run_dir", "runs/verdicts")) / row.name)
            print(line(row, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
