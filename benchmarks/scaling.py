"""Time and memory against the length of sequences: `python -m benchmarks.scaling`.

Forward and backward of the delta rule at B 1, H 8, K 128, V 64, and of SDPA with heads of 64, for T
from 1,024 to 16,384. Times are medians of turns in one process. Peak memory, above that of the
arguments, is taken in a process of its own for every point, which returns freed memory at once.
Exponents p of T^p are fitted to the logarithms by least squares. The part of the rate of a large
matrix product that a rule reaches is counted as in `benchmarks.ops`.
"""

import argparse
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measuring import (
    add_common,
    begin,
    conditions,
    forget_peak,
    limits,
    markdown,
    measure,
    quantiles,
    resident,
    write_csv,
)
from benchmarks.ops import Shape, contenders

LENGTHS = (1024, 2048, 4096, 8192, 16_384)
NAMES = ("native", "chunk", "SDPA")
SHAPE = {"batch": 1, "heads": 8, "keys": 128, "values": 64}


def shape(tokens: int) -> Shape:
    """Return the sizes at a length."""
    return Shape(tokens=tokens, **SHAPE)


def peak(name: str, tokens: int) -> int:
    """Return the bytes at peak of forward + backward above what was there before."""
    work = contenders("delta", shape(tokens), None, longest=LENGTHS[-1])[name]
    contenders("delta", shape(16), None)[name]()  # builds and warms up
    forget_peak()
    before = resident("VmRSS")
    kept = work()
    assert kept is not None
    return resident("VmHWM") - before


def _peak_in_a_process(name: str, tokens: int, threads: int) -> int:
    command = [sys.executable, "-m", "benchmarks.scaling", "--threads", str(threads)]
    # Large blocks go back to the system as soon as they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command += ["--peak", name, str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def exponent(lengths: list[int], values: list[float]) -> float:
    """Return p of the power law T^p closest to the values, in logarithms."""
    x, y = ([math.log(value) for value in numbers] for numbers in (lengths, values))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - x_mean) ** 2 for a in x)


def draw(found: dict[str, dict[int, tuple[float, int]]], path: Path) -> None:
    """Plot times and peaks."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, part, factor, label in ((axes[0], 0, 1e3, "ms"), (axes[1], 1, 1e-6, "peak MB")):
        for name, points in found.items():
            values = [factor * points[t][part] for t in points]
            axis.plot(list(points), values, "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="T", ylabel=label)
        axis.set_xticks(LENGTHS, [str(t) for t in LENGTHS])
        axis.minorticks_off()
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--names", nargs="+", default=list(NAMES), choices=NAMES)
    add_common(parser, seconds=60.0)
    parser.add_argument("--plot", type=Path, help="where to draw them")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:  # before anything that keeps freed memory
        torch.set_num_threads(options.threads)
        print(peak(options.peak[0], int(options.peak[1])))
        return
    clock = begin(options)
    rates = limits(options.seconds, clock=clock)
    print(f"{conditions()}; {rates}", flush=True)
    works = {
        f"{name} {t}": contenders("delta", shape(t), None, longest=LENGTHS[-1])[name]
        for t in LENGTHS
        for name in options.names
    }
    times = measure(works, options.seconds, clock=clock)
    del works
    found: dict[str, dict[int, tuple[float, int]]] = {}
    lines, rows = [], []
    for name in options.names:
        for t in LENGTHS:
            if f"{name} {t}" not in times:
                continue
            low, middle, high = quantiles(times[f"{name} {t}"])
            memory = _peak_in_a_process(name, t, torch.get_num_threads())
            found.setdefault(name, {})[t] = middle, memory
            # q, k, v, o and the gradients of all four; SDPA's queries and keys are as its values.
            keys = SHAPE["values"] if name == "SDPA" else SHAPE["keys"]
            part = memory / (4 * 2 * SHAPE["heads"] * t * 2 * (keys + SHAPE["values"]))
            lines.append([name, t, f"{middle * 1e3:.3g}", f"{low * 1e3:.3g}-{high * 1e3:.3g}"])
            share = None
            if name != "SDPA":
                share = shape(t).operations(delta=True) / middle / rates.operations
            lines[-1] += [f"{memory / 1e6:.0f}", f"{part:.2f}"]
            lines[-1].append("" if share is None else f"{share:.0%}")
            rows.append([name, t, low, middle, high, memory, part, share])
    header = ["", "T", "ms", "middle half", "peak MB", "x of q, k, v, o and gradients"]
    header.append("of the matrix rate")
    print(f"\n{markdown(header, lines)}\n")
    for name, points in found.items():
        lengths, values = list(points), list(points.values())
        powers = [exponent(lengths, [float(x[part]) for x in values]) for part in (0, 1)]
        print(f"{name}: time T^{powers[0]:.2f}, memory T^{powers[1]:.2f}")
    if options.csv is not None:
        header = ["name", "tokens", "q1", "median", "q3", "peak_bytes", "of_arguments", "of_matrix"]
        write_csv(options.csv, header, rows)
    if options.plot is not None:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
