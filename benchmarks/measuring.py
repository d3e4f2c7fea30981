"""What the speed benchmarks share: turns in one process, medians, tables, the machine's limits."""

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fwlight.ops import native
from fwlight.run import keep_freed_memory

MATRIX = 2048
COPIED = 1 << 26  # numbers of a copy, a quarter of a gigabyte
TOO_SLOW = 10.0
"""Seconds of a first call after which a contender is left out."""
TURN = 0.005
"""Seconds that a contender's turn lasts at least, after a first call that is not counted."""

Work = Callable[[], object]
Clock = Callable[[], float]


class Quantiles(NamedTuple):
    """The middle half of some times, in seconds."""

    low: float
    median: float
    high: float


def quantiles(times: Sequence[float]) -> Quantiles:
    """Lower quartile, median and upper quartile."""
    if len(times) < 2:
        return Quantiles(times[0], times[0], times[0])
    return Quantiles(*statistics.quantiles(times, n=4, method="inclusive"))


def measure(
    functions: Mapping[str, Work], seconds: float, *, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Return the times of every function, called in turns for about `seconds`, at least thrice.

    The order of a round is drawn, so that nobody always follows the same neighbour. The first call
    of a turn brings code and data back to the caches and is not counted. On a busy machine
    `time.process_time` measures what one thread works, not what it waits.
    """
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        # Again where the first call had to wait for something else.
        if any(_timed(function, clock) < TOO_SLOW for _ in range(2)):
            times[name] = []
    end, rounds, draw = time.perf_counter() + seconds, 0, random.Random(0)
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for name in draw.sample(list(times), len(times)):
            functions[name]()
            times[name].append(_timed(functions[name], clock))
            spent = times[name][-1]
            while spent < TURN:
                times[name].append(_timed(functions[name], clock))
                spent += times[name][-1]
    return times


def _timed(function: Work, clock: Clock) -> float:
    start = clock()
    function()
    return clock() - start


def matrix_product() -> Work:
    """Return a product of large matrices, `matrix_operations` operations."""
    a, out = torch.randn(MATRIX, MATRIX), torch.empty(MATRIX, MATRIX)
    return lambda: torch.mm(a, a, out=out)


def matrix_operations() -> int:
    """How many operations `matrix_product` makes."""
    return 2 * MATRIX**3


def copy_rate(seconds: float, *, clock: Clock) -> float:
    """Return bytes read and written a second in copying a quarter of a gigabyte."""
    source = torch.ones(COPIED)
    target = torch.empty_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, seconds, clock=clock)["copy"]
    return 2 * source.nbytes / quantiles(times).median


class Limits(NamedTuple):
    """What the machine can do at best, a second."""

    operations: float
    """Floating-point operations of a large matrix product."""
    copied: float
    """Bytes read and written by a large copy."""

    def __str__(self) -> str:
        return (
            f"matrix product {self.operations / 1e9:.0f} GFLOP/s, copy {self.copied / 1e9:.1f} GB/s"
        )


def limits(seconds: float, *, clock: Clock) -> Limits:
    """Measure the machine's rates, for about `seconds` each, two at most."""
    seconds = min(seconds, 2.0)
    times = measure({"product": matrix_product()}, seconds, clock=clock)["product"]
    rate = matrix_operations() / quantiles(times).median
    return Limits(rate, copy_rate(seconds, clock=clock))


def resident(field: str) -> int:
    """Return bytes that Linux counts for this process: VmRSS, resident now, or VmHWM, its peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    """Set the peak of resident memory back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write all numbers of a benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def add_common(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--seconds", type=float, default=seconds, help="for each table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="time the work of one thread, on a busy machine"
    )
    parser.add_argument("--csv", type=Path, help="where to write all numbers")


def begin(options: argparse.Namespace) -> Clock:
    """Set what the common options say, and return the clock."""
    torch.set_num_threads(1 if options.cpu_time else options.threads)
    keep_freed_memory()
    native.absence(torch.float32)  # compiles, which is no part of anybody's first call
    return time.process_time if options.cpu_time else time.perf_counter


def conditions() -> str:
    """Return what the figures depend on, in a line."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32"
