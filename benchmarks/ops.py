"""The update rules against their peers: `python -m benchmarks.ops`, times of forward + backward.

All contenders of a shape take turns in one process, so that what else the machine does hits all of
them; reported are medians, the middle half of the times, and ratios of medians. Beside them stands
the rate of a large matrix product, measured in the same turns, and the part of it that a rule
reaches, counted in the operations of the chunkwise algorithm with chunks of 16.

Peers: SDPA (softmax attention, q and k of the size of v), transformers'
`torch_chunk_gated_delta_rule` if installed (the extra `bench`), and the causal product of
pytorch-fast-transformers, whose one CPU source `--fast-transformers PATH` names (the package does
not install without CUDA); it is compiled with its own flags.
"""

import argparse
import csv
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import cpp_extension

from fwlight.ops import delta_rule, sum_rule

MATRIX = 2048
TOO_SLOW = 10.0
"""Seconds of a first call after which a contender is left out."""


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
        """Operations of forward and backward in chunks of 16, triangular products counted half."""
        state = self.keys * self.values
        chunk = 8 * self.keys + 6 * self.values if delta else 4 * self.keys + 4 * self.values
        per_token = (20 if delta else 14) * state + 16 * chunk
        return self.batch * self.heads * self.tokens * per_token


SHAPES = {
    "small": Shape(4, 8, 256, 32, 16),
    "medium": Shape(2, 8, 1024, 128, 64),
    "long": Shape(2, 8, 4096, 128, 64),
    "longest": Shape(1, 8, 16384, 128, 64),
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


def contenders(rule: str, shape: Shape, product: Any) -> dict[str, Callable[[], object]]:
    """What to time, by name: forward and backward to all arguments."""
    q, k, v, beta, d_o = inputs(shape)
    function = {"sum": sum_rule, "delta": delta_rule}[rule]
    arguments = (q, k, v, beta) if rule == "delta" else (q, k, v)

    def ours(backend: str) -> Callable[[], object]:
        def call() -> object:
            o, _ = function(*arguments, backend=backend)
            return torch.autograd.grad(o, arguments, d_o)

        return call

    found = {"native": ours("native"), "chunk": ours("chunk")}
    if shape.tokens <= 256:
        found["token loop"] = ours("recurrent")
    if shape.tokens <= 4096:
        found["SDPA"] = _softmax(shape, v, d_o)
    if rule == "delta" and shape.tokens <= 4096 and importlib.util.find_spec("transformers"):
        found["transformers"] = _transformers(q, k, v, beta, d_o)
    if rule == "sum" and product is not None:
        found["fast-transformers"] = _fast_transformers(product, q, k, v, d_o)
    return found


def _softmax(shape: Shape, v: Tensor, d_o: Tensor) -> Callable[[], object]:
    q, k = (torch.randn_like(v).requires_grad_() for _ in range(2))

    def call() -> object:
        o = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(o, (q, k, v), d_o)

    return call


def _transformers(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, d_o: Tensor
) -> Callable[[], object]:
    module = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    d_o = d_o.transpose(1, 2)

    def call() -> object:
        turned = (x.transpose(1, 2) for x in (q, k, v))
        b = beta.transpose(1, 2)
        o, _ = module.torch_chunk_gated_delta_rule(*turned, g=torch.zeros_like(b), beta=b)
        return torch.autograd.grad(o, (q, k, v, beta), d_o)

    return call


def _fast_transformers(
    product: Any, q: Tensor, k: Tensor, v: Tensor, d_o: Tensor
) -> Callable[[], object]:
    q, k, v = (x.detach() for x in (q, k, v))

    def call() -> object:
        o = torch.zeros_like(v)
        product.causal_dot_product(q, k, v, o)
        gradients = [torch.zeros_like(x) for x in (q, k, v)]
        product.causal_dot_backward(q, k, v, d_o, *gradients)
        return gradients

    return call


def build_fast_transformers(source: Path) -> Any:
    """Compile the causal product with upstream's flags and import it."""
    name = "causal_product_cpu"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.so"
        includes = [*cpp_extension.include_paths(), _python_headers()]
        lib = Path(torch.__file__).parent / "lib"
        command = [os.environ.get("CXX", "c++"), "-O2", "-fopenmp", "-ffast-math", "-std=c++20"]
        command += ["-shared", "-fPIC", "-w", f"-DTORCH_EXTENSION_NAME={name}"]
        command += [*(f"-I{path}" for path in includes), str(source), "-o", str(target)]
        command += [f"-L{lib}", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
        subprocess.run(command, check=True)
        spec = importlib.util.spec_from_file_location(name, target)
        if spec is None or spec.loader is None:
            raise ImportError(f"{target} is no module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _python_headers() -> str:
    return importlib.import_module("sysconfig").get_path("include")


def measure(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Return the times of every function, called in turns for about `seconds`, at least thrice."""
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        start = time.perf_counter()
        function()
        if time.perf_counter() - start < TOO_SLOW:
            times[name] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, found in times.items():
            start = time.perf_counter()
            functions[name]()
            found.append(time.perf_counter() - start)
    return times


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    q = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return float(q[0]), float(q[1]), float(q[2])


def decoding(seconds: float) -> dict[str, list[float]]:
    """Times of one layer's step: 8 heads, K 128, V 64, against softmax over 8,192 tokens."""
    q, k = torch.randn(2, 1, 8, 1, 128)
    v, beta, state = torch.randn(1, 8, 1, 64), torch.rand(1, 8, 1), torch.randn(1, 8, 128, 64)
    query, keys, values = torch.randn(1, 8, 1, 64), *torch.randn(2, 1, 8, 8192, 64)
    steps: dict[str, Callable[[], object]] = {
        backend: lambda backend=backend: delta_rule(
            q, k / 16, v, beta, initial_state=state, backend=backend
        )
        for backend in ("native", "recurrent")
    }
    steps["SDPA, 8,192 tokens"] = lambda: scaled_dot_product_attention(query, keys, values)
    with torch.no_grad():
        return measure(steps, seconds)


def report(
    title: str, times: dict[str, list[float]], operations: int | None, rows: list[list[object]]
) -> None:
    """Print one table and add its lines to `rows`."""
    rate = 0.0
    if "matrix product" in times:
        rate = 2 * MATRIX**3 / quantiles(times.pop("matrix product"))[1]
        title += f"; matrix product {rate / 1e9:.0f} GFLOP/s"
    best = quantiles(times["native"])[1]
    print(f"\n### {title}\n\n| | ms | middle half | n | x native | of the matrix rate |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        low, middle, high = quantiles(found)
        ours = operations is not None and name in ("native", "chunk")
        share = f"{operations / middle / rate:.0%}" if ours and operations else ""
        print(
            f"| {name} | {middle * 1e3:.3g} | {low * 1e3:.3g}-{high * 1e3:.3g} | {len(found)} "
            f"| {middle / best:.2f} | {share} |"
        )
        rows.append([title, name, low, middle, high, len(found), middle / best, share])
    sys.stdout.flush()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("--rules", nargs="+", default=["delta", "sum"], choices=["delta", "sum"])
    parser.add_argument("--shapes", nargs="+", default=["small", "medium", "long"], choices=SHAPES)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fast-transformers", type=Path, help="its causal_product_cpu.cpp")
    parser.add_argument("--csv", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path: Path | None = options.fast_transformers
    product = None if path is None else build_fast_transformers(path)
    print(f"torch {torch.__version__}, {options.threads} threads, float32, forward + backward")
    rows: list[list[object]] = []
    a = torch.randn(MATRIX, MATRIX)
    for name in options.shapes:
        shape = SHAPES[name]
        for rule in options.rules:
            functions = contenders(rule, shape, product)
            functions["matrix product"] = lambda: a @ a
            times = measure(functions, options.seconds)
            report(f"{rule} {shape}", times, shape.operations(rule == "delta"), rows)
    report("One step of a layer, B1 H8 K128 V64", decoding(options.seconds / 4), None, rows)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["table", "name", "q1", "median", "q3", "n", "ratio", "share"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
