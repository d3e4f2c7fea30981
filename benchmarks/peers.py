"""What `benchmarks.ops` times beside the update rules: code of other packages, and SDPA."""

import importlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import cpp_extension

from benchmarks.measuring import Work

PACKAGE = "pytorch-fast-transformers"
FLA_CHUNK = 32  # its default


def load(name: str, path: Path) -> Any:
    """Import a file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_fast_transformers(source: Path | None) -> Any:
    """Compile the causal product with upstream's flags and import it."""
    name = "causal_product_cpu"
    with tempfile.TemporaryDirectory() as folder:
        source = source or download(Path(folder))
        target = Path(folder) / f"{name}.so"
        includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
        lib = Path(torch.__file__).parent / "lib"
        command = [os.environ.get("CXX", "c++"), "-O2", "-fopenmp", "-ffast-math", "-std=c++20"]
        command += ["-shared", "-fPIC", "-w", f"-DTORCH_EXTENSION_NAME={name}"]
        command += [*(f"-I{path}" for path in includes), str(source), "-o", str(target)]
        command += [f"-L{lib}", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
        subprocess.run(command, check=True, capture_output=True)
        return load(name, target)


def download(folder: Path) -> Path:
    """Return the one CPU source of the source distribution, as pip leaves it when it gives up."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-clean", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", ":all:", PACKAGE]
    environment = {**os.environ, "TMPDIR": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    found = next(folder.rglob("causal_product_cpu.cpp"), None)
    if found is None:
        raise FileNotFoundError(f"pip could not download the source of {PACKAGE}")
    return found


def softmax(v: Tensor, d_o: Tensor) -> Work:
    """SDPA, q and k of the size of v."""
    q, k = (torch.randn_like(v).requires_grad_() for _ in range(2))

    def call() -> object:
        o = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(o, (q, k, v), d_o)

    return call


def transformers_chunk(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, d_o: Tensor, decay: Tensor | None = None
) -> Work:
    """The chunkwise gated delta rule of transformers."""
    module = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    d_o = d_o.transpose(1, 2)
    leaves = (q, k, v, beta, *(() if decay is None else (decay,)))

    def call() -> object:
        turned = (x.transpose(1, 2) for x in (q, k, v))
        b = beta.transpose(1, 2)
        g = torch.zeros_like(b) if decay is None else decay.transpose(1, 2)
        o, _ = module.torch_chunk_gated_delta_rule(*turned, g=g, beta=b)
        return torch.autograd.grad(o, leaves, d_o)

    return call


def fla_chunkwise() -> Any:
    """Return fla's rule in torch's operators, without the package around it, which wants Triton."""
    package = importlib.util.find_spec("fla")
    if package is None or importlib.util.find_spec("einops") is None:
        return None
    folder = next(iter(package.submodule_search_locations or []))
    return load("fla_naive", Path(folder) / "ops/delta_rule/naive.py").delta_rule_chunkwise


def fla(naive: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, d_o: Tensor) -> Work:
    """What `fla_chunkwise` returned, at work."""

    def call() -> object:
        o, _ = naive(q, k, v, beta, chunk_size=FLA_CHUNK)
        return torch.autograd.grad(o, (q, k, v, beta), d_o)

    return call


def fast_transformers(product: Any, q: Tensor, k: Tensor, v: Tensor, d_o: Tensor) -> Work:
    """What `build_fast_transformers` returned, at work."""
    q, k, v = (x.detach() for x in (q, k, v))

    def call() -> object:
        o = torch.zeros_like(v)
        product.causal_dot_product(q, k, v, o)
        gradients = [torch.zeros_like(x) for x in (q, k, v)]
        product.causal_dot_backward(q, k, v, d_o, *gradients)
        return gradients

    return call
