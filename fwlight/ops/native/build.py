"""Compiling the C++ source at first use, and finding it compiled the next time."""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fwlight.cache import cache_folder

SOURCE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-w")
FUNCTIONS = (
    "fwlight_forward",
    "fwlight_backward",
    "fwlight_dpfp",
    "fwlight_sum_norm",
    "fwlight_read",
    "fwlight_dropout",
)
REALS = {torch.float32: "float", torch.float64: "double"}


class BuildError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the kernels for numbers of `dtype`, compiled if the cache has none that fit.

    Raises:
        BuildError: If there is no compiler or it fails.
    """
    real = REALS[dtype]
    compiler, identity = _compiler()
    name = _file_name(compiler, identity, real)
    for folder in _cache_folders():
        try:
            return _load(folder / name)
        except OSError:  # not there, or damaged
            continue
    return _build(compiler, identity, real, name)


def obstacle(k: Tensor, v: Tensor, dtype: torch.dtype, **gates: Tensor) -> str | None:
    """Return why the kernels cannot compute such inputs in `dtype`, or None if they can."""
    if not k.is_cpu:
        return f"the tensors are on {k.device.type}, not cpu"
    # numel, for nearly every call, is less than half the time of the two shapes.
    if not (k.numel() and v.numel()) and 0 in (k.shape[3], v.shape[3]):
        return f"keys of size {k.shape[3]} and values of size {v.shape[3]} hold nothing"
    if gates:
        return "gates run in the chunk form"
    return build_obstacle(dtype)


@torch.compiler.assume_constant_result  # pyright: ignore[reportUnknownMemberType]
def build_obstacle(dtype: torch.dtype) -> str | None:
    """Return why there are no kernels for numbers of `dtype`, or None if there are."""
    if dtype not in REALS:
        return f"the numbers are {str(dtype).removeprefix('torch.')}, not float32 or float64"
    return _try_build(dtype)


@functools.cache
def _try_build(dtype: torch.dtype) -> str | None:
    try:
        library(dtype)
    except BuildError as error:
        return str(error)
    return None


def _file_name(compiler: list[str], identity: str, real: str) -> str:
    """Return another name for everything that may make another library."""
    key = hashlib.sha256(f"{compiler}\n{identity}\n{FLAGS}\n{_openmp_library()}".encode())
    for path in sorted([*SOURCE.glob("*.h"), *SOURCE.glob("*.cpp")]):
        key.update(path.read_bytes())
    return f"rules-{real}-{key.hexdigest()[:24]}.so"


def _compiler() -> tuple[list[str], str]:
    """Return the compiler's command, and its version with what it knows of this CPU."""
    chosen = os.environ.get("CXX")
    commands = [shlex.split(chosen)] if chosen else [["c++"], ["g++"], ["clang++"]]
    for command in commands:
        if command and shutil.which(command[0]):
            try:
                version = _run([*command, "--version"])
                # The instruction sets that -march=native stands for are among the macros.
                macros = _run([*command, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
            except BuildError:
                continue
            return command, version + macros
    wanted = (
        f"CXX={chosen!r} does not work" if chosen else "c++, g++ or clang++ are not on the PATH"
    )
    raise BuildError(f"there is no C++ compiler: {wanted}")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else "")
        raise BuildError(f"{command[0]} failed: {reason.strip()}") from error
    return done.stdout


def _openmp_library() -> Path | None:
    """Return the OpenMP runtime that torch brings, if it does.

    A second one would keep a second set of threads, which wait actively on the same cores.
    """
    root = Path(torch.__file__).parent
    folders = (root / "lib", root.parent / "torch.libs")
    return next((path for folder in folders for path in sorted(folder.glob("libgomp*.so*"))), None)


def _cache_folders() -> list[Path]:
    folder = cache_folder()
    return [] if folder is None else [folder]


def _build(compiler: list[str], identity: str, real: str, name: str) -> ctypes.CDLL:
    """Compile into the first cache folder that can be written, else into one for this process."""
    for folder in _cache_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
                built = _compile(compiler, identity, real, Path(work))
                # At once and whole: other processes may build, or load, the same file.
                os.replace(built, folder / name)
            return _load(folder / name)
        except OSError:
            continue
    # What is loaded stays loaded when its file goes.
    with tempfile.TemporaryDirectory(prefix="fwlight-") as work:
        try:
            return _load(_compile(compiler, identity, real, Path(work)))
        except OSError as error:
            raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error


def _compile(compiler: list[str], identity: str, real: str, work: Path) -> Path:
    """Return a shared library, with torch's OpenMP, another one or none: what can be had."""
    target = work / "rules.o", work / "rules.so"
    compile_ = [*compiler, *FLAGS, f"-DFW_REAL={real}", "-c", str(SOURCE / "rules.cpp"), "-o"]
    link = [*compiler, "-shared", str(target[0]), "-o", str(target[1])]
    shared = _openmp_library()
    attempts: list[tuple[list[str], list[str]]] = [(["-fopenmp"], ["-fopenmp"]), ([], [])]
    if shared is not None and "__clang__" not in identity:
        attempts.insert(0, (["-fopenmp"], [str(shared)]))
    for last, (compile_flags, link_flags) in enumerate(attempts, start=1 - len(attempts)):
        try:
            _run([*compile_, str(target[0]), *compile_flags])
            _run([*link, *link_flags])
            break
        except BuildError:
            if last == 0:
                raise
    return target[1]


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path.absolute()))
    for name in FUNCTIONS:
        function = getattr(loaded, name)
        function.restype, function.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return loaded
