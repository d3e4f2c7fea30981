"""Faults of the compiled kernels' cache: damaged files, full disks, disks that run no code."""

import random
import subprocess
from pathlib import Path

import pytest
import torch

from fwlight.ops.native import build, store
from tests.faults.processes import small_disk
from tests.ops.discovery import needs_compiler
from tests.ops.test_native_build import compiler_in, finish, start, times_compiled

SAMPLE = 10


@pytest.fixture(scope="module")
def kernel() -> tuple[str, bytes]:
    """The name and the content of this machine's kernels for float32."""
    library = build.library(torch.float32)
    path = Path(library._name)
    return path.stem.rpartition("-")[0], path.read_bytes()


@needs_compiler
@pytest.mark.fault(29)
@pytest.mark.parametrize(
    "count", [SAMPLE, pytest.param(200, marks=pytest.mark.full)], ids=lambda x: f"{x}_flips"
)
def test_no_kernel_with_a_flipped_bit_is_loaded(kernel, count, tmp_path, monkeypatch):
    name, content = kernel
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store.tempfile, "tempdir", str(tmp_path))
    loaded = store.make(name, lambda work: _written(work / "rules.so", content))
    path = Path(loaded._name)
    monkeypatch.setattr(store.ctypes, "CDLL", lambda path: loaded)
    assert store.find(name) is loaded
    numbers = random.Random(0)
    for _ in range(count):
        damaged = bytearray(content)
        damaged[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        _written(path, bytes(damaged))
        assert store.find(name) is None
    for length in numbers.sample(range(len(content)), count):
        _written(path, content[:length])
        assert store.find(name) is None
        _written(path, content[:length] + bytes(len(content) - length))
        assert store.find(name) is None or not any(content[length:])


def _written(path: Path, content: bytes) -> Path:
    path.unlink(missing_ok=True)  # this process has it loaded
    path.write_bytes(content)
    return path


@needs_compiler
@pytest.mark.fault(29)
@pytest.mark.full
def test_a_process_that_finds_a_damaged_kernel_makes_it_anew(tmp_path):
    cache = tmp_path / "cache"
    environment = {"CXX": compiler_in(tmp_path), "FWLIGHT_CACHE": str(cache)}
    finish(start(tmp_path, **environment))
    (path,) = cache.iterdir()
    content = path.read_bytes()
    kept = content[: len(content) * 6 // 10]
    path.write_bytes(kept + bytes(len(content) - len(kept)))
    for _ in range(2):
        assert finish(start(tmp_path, **environment)) == ""
        assert times_compiled(tmp_path) == 2
    assert path.read_bytes() == content


@needs_compiler
@pytest.mark.fault(30)
@pytest.mark.full
@pytest.mark.parametrize("kind", ["full", "noexec"])
def test_a_disk_that_holds_no_kernels_is_replaced_once_in_one_line(kind, tmp_path):
    with small_disk(tmp_path / "disk", "1m" if kind == "full" else "64m") as disk:
        if kind == "noexec":
            subprocess.run(["mount", "-o", "remount,noexec", str(disk)], check=True)
        environment = {"CXX": compiler_in(tmp_path), "FWLIGHT_CACHE": str(disk / "cache")}
        environment["TMPDIR"] = str(tmp_path / "temporary")
        (tmp_path / "temporary").mkdir()
        told = finish(start(tmp_path, **environment))
        assert told.count("RuntimeWarning: compiled kernels cannot be kept in") == 1
        assert finish(start(tmp_path, **environment)) == ""
        assert times_compiled(tmp_path) == 1
