"""Two commits' times of one benchmark, in alternating pairs of processes.

    python -m benchmarks.pairs BEFORE AFTER --pairs 15 -- step --tasks lm --seconds 2

BEFORE and AFTER are working trees (`git worktree add BEFORE COMMIT`). In each of them the benchmark
runs with this Python, in turn, and every time that both report is compared: the ratio after /
before of each pair, its geometric mean, and that mean's 95 % interval (Student's t of logarithms).
Slower is what has its whole interval above 1.03; the exit code is then 1.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import markdown

BOUND = 1.03
TIMES = ("median", "median_us")
T_95 = [math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
T_95 += [2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]
"""Two-sided quantiles of Student's t by degrees of freedom; beyond 20 the last one."""


def times(tree: Path, arguments: list[str]) -> dict[str, float]:
    """Run a benchmark in a tree; return the medians that it reports by the names of their rows."""
    name, *rest = arguments
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.csv"
        command = [sys.executable, "-m", f"benchmarks.{name}", *rest, "--csv", str(found)]
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: in {tree}: {done.stderr.strip().splitlines()[-1]}")
        with found.open(newline="") as file:
            rows = list(csv.DictReader(file))
    return {_name(row): float(row[time]) for row in rows for time in TIMES if time in row}


def _name(row: dict[str, str]) -> str:
    """Return what stands before a row's quartiles."""
    columns = list(row)
    first = next(i for i, column in enumerate(columns) if column.startswith("q1"))
    return ", ".join(row[column] for column in columns[:first])


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios, and the ends of its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logs)
    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    reach = T_95[min(len(logs) - 1, len(T_95) - 1)] * spread
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("benchmark", nargs="+", help="its name and arguments, after --")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error(f"--pairs={options.pairs} must be at least 2")
    found: dict[str, list[float]] = {}
    for pair in range(options.pairs):
        trees = [options.before, options.after]
        order = trees if pair % 2 == 0 else trees[::-1]
        taken = {tree: times(tree, options.benchmark) for tree in order}
        old, new = (taken[tree] for tree in trees)
        for name in old.keys() & new.keys():
            if options.only in name:
                found.setdefault(name, []).append(new[name] / old[name])
        ratios = ", ".join(f"{name} {x[-1]:.3f}" for name, x in sorted(found.items()))
        print(f"pair {pair + 1} of {options.pairs}: {ratios}", file=sys.stderr, flush=True)
    lines, slower = [], False
    for name, ratios in sorted(found.items()):
        middle, low, high = interval(ratios)
        slower |= low > BOUND
        verdict = "slower" if low > BOUND else ""
        lines.append([name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", verdict])
    print(markdown(["", "after / before", "95 %", ""], lines))
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
