"""The update rules against their peers: `python -m benchmarks.ops`, times of forward + backward.

All contenders of a shape take turns in one process, in an order drawn anew each round, so that what
else the machine does hits all of them; reported are medians, the middle half of the times, and
ratios of medians. Beside them stand the rates of a large matrix product, measured in the same
turns, and of a large copy, and the part of the first that a rule reaches, counted in the operations
of the chunkwise algorithm with chunks of 16. Freed memory is kept, as in training.

Peers: SDPA (softmax attention, q and k of the size of v), transformers'
`torch_chunk_gated_delta_rule` if installed (the extra `bench`), fla's `delta_rule_chunkwise` in
torch's operators if fla-core and einops are (Triton is not needed), and the causal product of
pytorch-fast-transformers, of whose source distribution pip is asked for (the package does not
install without CUDA) unless `--fast-transformers` names its one CPU source; it is compiled with its
own flags, or left out with a line that says why.
"""

import argparse
import functools
import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.measuring import (
    Work,
    add_common,
    begin,
    conditions,
    copy_rate,
    markdown,
    matrix_operations,
    matrix_product,
    measure,
    quantiles,
    write_csv,
)
from benchmarks.scans import CORES, scan_contenders
from fwlight.ops import delta_rule, sum_rule

RULES = ("delta", "sum", *CORES)


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement."""

    batch: int
    heads: int
    tokens: int
    keys: int
    values: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} T{self.tokens} K{self.keys} V{self.values}"

    def operations(self, delta: bool) -> int:
        """Operations of forward and backward in chunks of 16, triangular products counted half.

        The backward pass computes states and products of keys again, which counts, as it does not
        in a kernel that keeps the latter.
        """
        state = self.keys * self.values
        chunk = 8 * self.keys + 6 * self.values if delta else 4 * self.keys + 3 * self.values
        per_token = (20 if delta else 14) * state + 16 * chunk
        return self.batch * self.heads * self.tokens * per_token


SHAPES = {
    "one": Shape(4, 8, 1, 32, 16),
    "four": Shape(4, 8, 4, 32, 16),
    "chunk": Shape(4, 8, 16, 32, 16),
    "small": Shape(4, 8, 256, 32, 16),
    "medium": Shape(2, 8, 1024, 128, 64),
    "long": Shape(2, 8, 4096, 128, 64),
    "longest": Shape(1, 8, 16384, 128, 64),
    "scan16": Shape(16, 8, 256, 16, 16),
    "scan32": Shape(16, 8, 256, 32, 32),
}


def inputs(shape: Shape) -> list[Tensor]:
    """q, k (of length 1), v, beta and a gradient of o."""
    generator = torch.Generator().manual_seed(0)
    b, h, t = shape.batch, shape.heads, shape.tokens

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    k = normal(b, h, t, shape.keys)
    k = k / k.norm(dim=-1, keepdim=True)
    leaves = [normal(b, h, t, shape.keys), k, normal(b, h, t, shape.values)]
    leaves.append(torch.rand(b, h, t, generator=generator))
    return [*(x.requires_grad_() for x in leaves), normal(b, h, t, shape.values)]


def make_gates(shape: Shape) -> dict[str, Tensor]:
    """A decay a token, one a channel, and a key that erases."""
    tokens, keys = (shape.batch, shape.heads, shape.tokens), shape.keys
    found = {"decay": -torch.rand(tokens), "decay a channel": -torch.rand(*tokens, keys)}
    found["erase key"] = torch.randn(*tokens, keys) / keys**0.5
    return {name: x.requires_grad_() for name, x in found.items()}


def contenders(rule: str, shape: Shape, product: Any, *, longest: int = 4096) -> dict[str, Work]:
    """What to time, by name: forward and backward to all arguments; SDPA up to the `longest` T."""
    q, k, v, beta, d_o = inputs(shape)
    function = {"sum": sum_rule, "delta": delta_rule}[rule]
    arguments = (q, k, v, beta) if rule == "delta" else (q, k, v)

    gates = functools.cache(lambda: make_gates(shape))  # where they are wanted

    def ours(backend: str, *names: str) -> Work:
        def call() -> object:
            given = {name.split(" a ")[0].replace(" ", "_"): gates()[name] for name in names}
            o, _ = function(*arguments, **given, backend=backend)
            return torch.autograd.grad(o, (*arguments, *given.values()), d_o)

        return call

    choices = [(), ("decay",), ("decay a channel",)]
    if rule == "delta":
        choices += [("decay", "erase key"), ("decay a channel", "erase key")]
    found = {
        ", ".join([backend, *names]): ours(backend, *names)
        for names in choices
        for backend in ("native", "chunk")
    }
    if rule == "delta":
        # As in DeltaProduct: keys, values and strengths of two writes, one query.
        twice = (q, *inputs(replace(shape, tokens=2 * shape.tokens))[1:4])
        for backend in ("native", "chunk"):
            found[f"{backend}, 2 writes"] = _twice(twice, d_o, backend)
    if shape.tokens <= 256:
        found["token loop"] = ours("recurrent")
    if shape.tokens <= longest:
        found["SDPA"] = peers.softmax(v, d_o)
    if rule == "delta" and shape.tokens <= 4096 and importlib.util.find_spec("transformers"):
        found["transformers"] = peers.transformers_chunk(q, k, v, beta, d_o)
        found["transformers, decay"] = peers.transformers_chunk(
            q, k, v, beta, d_o, gates()["decay"]
        )
    # Its backward pass grows with the square of T, to seconds at 4,096.
    if rule == "delta" and shape.tokens <= 1024 and shape.tokens % peers.FLA_CHUNK == 0:
        naive = peers.fla_chunkwise()
        if naive is not None:
            found["fla naive"] = peers.fla(naive, q, k, v, beta, d_o)
    if rule == "sum" and product is not None:
        found["fast-transformers"] = peers.fast_transformers(product, q, k, v, d_o)
    return found


def _twice(leaves: tuple[Tensor, ...], d_o: Tensor, backend: str) -> Work:
    q, k, v, beta = leaves

    def call() -> object:
        o, _ = delta_rule(q, k, v, beta, backend=backend)
        assert o is not None  # there are queries
        return torch.autograd.grad(o, leaves, d_o)

    return call


def report(title: str, times: dict[str, list[float]], operations: int | None) -> list[list[object]]:
    """Print one table; return its numbers."""
    rate = matrix_operations() / quantiles(times.pop("matrix product")).median
    best = quantiles(times["native"]).median
    rows, lines = [], []
    for name, found in times.items():
        low, middle, high = quantiles(found)
        share = None
        if operations is not None and name in ("native", "chunk"):
            share = operations / middle / rate
        rows.append([title, name, low, middle, high, len(found), middle / best, share, rate])
        numbers = [f"{x * 1e3:.3g}" for x in (middle, low, high)]
        shown = "" if share is None else f"{share:.0%}"
        half = f"{numbers[1]}-{numbers[2]}"
        lines.append([name, numbers[0], half, len(found), f"{middle / best:.2f}", shown])
    header = ["", "ms", "middle half", "n", "x native", "of the matrix rate"]
    print(f"\n### {title}; matrix product {rate / 1e9:.0f} GFLOP/s\n\n{markdown(header, lines)}")
    sys.stdout.flush()
    return rows


def draw(rows: list[list[object]], path: Path) -> None:
    """Plot the ratios to the native back end."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    titles = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(titles), figsize=(3.2 * len(titles), 3), squeeze=False, layout="constrained"
    )
    for axis, title in zip(axes[0], titles, strict=True):
        mine = [row for row in rows if row[0] == title]
        bars = axis.barh([str(row[1]) for row in mine], [row[6] for row in mine])
        axis.bar_label(bars, fmt=" %.3g")
        axis.set(xscale="log", xlim=(0.7, 400), title=title, xlabel="time / native")
        axis.title.set_fontsize(9)
        axis.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("--rules", nargs="+", default=["delta", "sum"], choices=RULES)
    parser.add_argument("--shapes", nargs="+", default=["small", "medium", "long"], choices=SHAPES)
    parser.add_argument("--names", nargs="+", help="time these and native alone")
    parser.add_argument("--fast-transformers", type=Path, help="its causal_product_cpu.cpp")
    add_common(parser, seconds=10.0)
    parser.add_argument("--plot", type=Path, help="where to draw the ratios")
    options = parser.parse_args()
    clock = begin(options)
    product = None
    if "sum" in options.rules:
        try:
            product = peers.build_fast_transformers(options.fast_transformers)
        except (OSError, subprocess.SubprocessError, ImportError) as error:
            print(f"without {peers.PACKAGE}: {error}")
    rate = copy_rate(min(options.seconds, 2.0), clock=clock)
    print(f"{conditions()}, forward + backward, copy {rate / 1e9:.1f} GB/s")
    rows: list[list[object]] = []
    for name in options.shapes:
        shape = SHAPES[name]
        for rule in options.rules:
            if rule in CORES:
                sizes = shape.batch, shape.heads, shape.tokens, shape.keys
                functions = scan_contenders(rule, *sizes)
            else:
                functions = contenders(rule, shape, product)
            names = {"native", *(options.names or functions)}
            functions = {name: work for name, work in functions.items() if name in names}
            functions["matrix product"] = matrix_product()
            times = measure(functions, options.seconds, clock=clock)
            counted = None if rule in CORES else shape.operations(rule == "delta")
            rows += report(f"{rule} {shape}", times, counted)
    if options.csv is not None:
        header = ["table", "name", "q1", "median", "q3", "n", "ratio", "share", "matrix_rate"]
        write_csv(options.csv, header, rows)
    if options.plot is not None:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
