"""The causal product of pytorch-fast-transformers, from its one CPU source."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

PACKAGE = "pytorch-fast-transformers"


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
