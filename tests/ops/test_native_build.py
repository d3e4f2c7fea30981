"""The native back end: compiling and caching it, doing without it, and other instruction sets."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fwlight.ops.native import build
from tests.faults.processes import Running
from tests.faults.victims import copying_compiler
from tests.ops.discovery import needs_compiler

ROOT = Path(__file__).resolve().parents[2]

USE = """
import warnings, torch
warnings.simplefilter("always")
from fwlight.ops import delta_rule
x = torch.ones(1, 1, 20, 4)
o, _ = delta_rule(x, x / 2, x, x[..., 0], backend="{backend}")
expected, _ = delta_rule(x, x / 2, x, x[..., 0], backend="recurrent")
assert torch.allclose(o, expected), (o, expected)
"""


def start(folder: Path, backend: str = "native", **environment: str) -> Running:
    """A process that uses the back end, told nothing of this one's environment but PATH."""
    program = folder / f"{backend}.py"
    program.write_text(USE.format(backend=backend))
    bare = dict.fromkeys(os.environ) | {"PATH": os.environ["PATH"]}
    output = Path(tempfile.mkdtemp(prefix="output-", dir=folder))
    return Running([], folder=output, program=program, environment=bare | environment)


def finish(process: Running) -> str:
    ended = process.wait(timeout=600)
    assert ended.code == 0, ended.err
    return ended.out + ended.err


def compiler_in(folder: Path) -> str:
    """A compiler that takes no time; it counts its calls in `log`."""
    path, copying = folder / "compiler", copying_compiler(folder / "copying")
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\nexec {copying} "$@"\n')
    path.chmod(0o755)
    return str(path)


def times_compiled(folder: Path) -> int:
    return (folder / "log").read_text().count("rules.cpp")


@needs_compiler
def test_processes_that_build_at_once_both_succeed_and_a_later_one_finds_it(tmp_path):
    cache = tmp_path / "cache"
    environment = {"CXX": compiler_in(tmp_path), "FWLIGHT_CACHE": str(cache)}
    outputs = [
        finish(process)
        for process in [start(tmp_path, **environment), start(tmp_path, **environment)]
    ]
    assert outputs == ["", ""]
    assert 1 <= times_compiled(tmp_path) <= 2
    (library,) = cache.iterdir()
    (tmp_path / "log").unlink()
    assert finish(start(tmp_path, **environment)) == ""
    assert times_compiled(tmp_path) == 0
    library.write_bytes(b"damaged")
    assert finish(start(tmp_path, **environment)) == ""
    assert times_compiled(tmp_path) == 1
    assert library.stat().st_size > 1000


@needs_compiler
@pytest.mark.parametrize(
    "kind", [pytest.param("file", marks=pytest.mark.full), "read-only", "no home"]
)
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, kind):
    place = tmp_path / "cache"
    environment = {"CXX": compiler_in(tmp_path), "FWLIGHT_CACHE": str(place)}
    environment["TMPDIR"] = str(tmp_path)
    if kind == "file":
        place.write_text("")
    elif kind == "read-only":
        # A folder of the kernel's: not even root can write there.
        environment["FWLIGHT_CACHE"] = "/proc/self"
    else:
        del environment["FWLIGHT_CACHE"]
    assert finish(start(tmp_path, **environment)) == ""
    assert times_compiled(tmp_path) == 1
    # What it was done with is found again.
    assert finish(start(tmp_path, **environment)) == ""
    assert times_compiled(tmp_path) == 1


@needs_compiler
def test_a_read_only_cache_is_read(tmp_path):
    cache = tmp_path / "cache"
    environment = {"CXX": compiler_in(tmp_path), "FWLIGHT_CACHE": str(cache)}
    finish(start(tmp_path, **environment))
    (tmp_path / "log").unlink()
    cache.chmod(0o500)
    assert finish(start(tmp_path, **environment)) == ""
    assert times_compiled(tmp_path) == 0
    cache.chmod(0o700)


def test_a_change_of_source_compiler_flags_or_cpu_is_another_file_of_the_cache(
    monkeypatch, tmp_path
):
    name = build._file_name(["c++"], "12 AVX2", "float")
    assert build._file_name(["c++"], "12 AVX2", "float") == name
    names = [
        name,
        build._file_name(["c++", "-O1"], "12 AVX2", "float"),
        build._file_name(["c++"], "13 AVX2", "float"),
        build._file_name(["c++"], "12 AVX512", "float"),
        build._file_name(["c++"], "12 AVX2", "double"),
    ]
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    names.append(build._file_name(["c++"], "12 AVX2", "float"))
    for path in [*build.SOURCE.glob("*.h"), *build.SOURCE.glob("*.cpp")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCE", tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + b"//")
        names.append(build._file_name(["c++"], "12 AVX2", "float"))
    assert len(names) > 15
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("backend", ["native", "auto"])
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "c++, g++ or clang++ are not on the PATH"),
        ({"CXX": "no-such-compiler"}, "CXX='no-such-compiler' does not work"),
        ({"CXX": "false"}, "CXX='false' does not work"),
    ],
)
def test_without_a_compiler_one_line_says_that_chunk_is_used(
    tmp_path, backend, environment, reason
):
    out = finish(start(tmp_path, backend, **environment))
    assert out.count("RuntimeWarning") == 1
    assert f"backend='native' cannot run here (there is no C++ compiler: {reason})" in out


GRADIENTS = """
import torch
from tests.ops.discovery import GATED, RULES, assert_near, make_gates, make_inputs, run
from tests.ops.discovery import weighted_sum

cases = [(rule, gates) for rule, backend, gates in GATED if backend == "native"]
for rule, gates in [*((rule, ()) for rule in RULES), *cases]:
    for t, d_key, d_value in ((3, 5, 70), (70, 40, 20), (70, 5, 7), (300, 40, 20)):
        inputs = make_inputs(t, d_key=d_key, d_value=d_value)
        given = make_gates(gates, t, d_key=d_key)
        for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-12)):
            arguments = [x.detach().to(dtype).requires_grad_() for x in inputs]
            given = {name: x.detach().to(dtype).requires_grad_() for name, x in given.items()}
            results = []
            for backend in ("native", "recurrent"):
                outputs = run(rule, backend, *arguments, **given)
                leaves = [*arguments, *given.values()]
                gradients = torch.autograd.grad(weighted_sum(*outputs), leaves)
                with torch.no_grad():
                    read = run(rule, backend, *arguments[:4], **given)
                results.append([*outputs, *gradients, *read])
            for actual, wanted in zip(*results, strict=True):
                assert_near(actual, wanted, tolerance)
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instruction sets of x86")
@pytest.mark.parametrize(
    "without",
    [
        pytest.param(
            "-mno-avx512f",
            marks=pytest.mark.skipif(
                "AVX512" not in torch.backends.cpu.get_cpu_capability(),
                reason="what is built anyway",
            ),
        ),
        pytest.param("-mno-avx", marks=pytest.mark.full),
    ],
)
def test_narrower_vectors_give_the_same_numbers(tmp_path, without):
    compiler, _ = build._compiler()
    environment = {"CXX": f"{' '.join(compiler)} {without}", "FWLIGHT_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", GRADIENTS]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
