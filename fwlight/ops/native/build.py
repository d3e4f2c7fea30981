"""Compiling the C++ source at first use, and finding it compiled the next time."""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
from pathlib import Path

import torch

from fwlight.ops.native import commands, store

SOURCE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-w")
FUNCTIONS = {
    "rules": (
        "fwlight_forward",
        "fwlight_backward",
        "fwlight_dpfp",
        "fwlight_sum_norm",
        "fwlight_read",
        "fwlight_activation",
        "fwlight_dropout",
        "fwlight_cross_entropy",
        "fwlight_short_conv",
        "fwlight_rms_norm",
        "fwlight_rotary",
        "fwlight_l2_norm",
    ),
    "gated_rules": ("fwlight_gated_forward", "fwlight_gated_backward"),
    "scans": ("fwlight_scan",),
    "channel_rules": ("fwlight_channel_forward", "fwlight_channel_backward"),
}
"""What each source file exports; each is a library of its own, compiled when it is first needed."""
REALS = {torch.float32: "float", torch.float64: "double"}


class BuildError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


@functools.cache
def library(dtype: torch.dtype, source: str = "rules") -> ctypes.CDLL:
    """Return what a source file exports for `dtype`, compiled if the cache has none that fits.

    Raises:
        BuildError: If there is no compiler or it fails.
    """
    real = REALS[dtype]
    compiler, identity = _compiler()
    name = _file_name(compiler, identity, real, source)
    found = store.find(name)
    if found is None:
        try:
            found = store.make(name, lambda work: _compile(compiler, identity, real, source, work))
        except commands.CommandError as error:
            raise BuildError(str(error)) from error
        except OSError as error:
            raise BuildError(f"compiled kernels cannot be kept or loaded: {error}") from error
    for function in FUNCTIONS[source]:
        entry = getattr(found, function)
        entry.restype, entry.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return found


@functools.cache
def build_obstacle(dtype: torch.dtype, source: str) -> str | None:
    """Return why a source file cannot be compiled or loaded for `dtype`, or None if it was."""
    if dtype not in REALS:
        return f"the numbers are {str(dtype).removeprefix('torch.')}, not float32 or float64"
    try:
        library(dtype, source)
    except BuildError as error:
        return str(error)
    return None


def _file_name(compiler: list[str], identity: str, real: str, source: str = "rules") -> str:
    """Return another name for everything that may make another library."""
    key = hashlib.sha256(f"{compiler}\n{identity}\n{FLAGS}\n{_openmp_library()}".encode())
    for path in sorted([*SOURCE.glob("*.h"), *SOURCE.glob("*.cpp")]):
        key.update(path.read_bytes())
    return f"{source}-{real}-{key.hexdigest()[:24]}"


def _compiler() -> tuple[list[str], str]:
    """Return the compiler's command, and its version with what it knows of this CPU."""
    if os.name != "posix":
        raise BuildError("kernels are not compiled on this system, which is Windows")
    chosen = os.environ.get("CXX")
    candidates = [shlex.split(chosen)] if chosen else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            try:
                version = commands.answer([*command, "--version"])
                # The instruction sets that -march=native stands for are among the macros.
                asked = [*command, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
                macros = commands.answer(asked)
            except commands.CommandError:
                continue
            return command, version + macros
    wanted = (
        f"CXX={chosen!r} does not work" if chosen else "c++, g++ or clang++ are not on the PATH"
    )
    raise BuildError(f"there is no C++ compiler: {wanted}")


def _openmp_library() -> Path | None:
    """Return the OpenMP runtime that torch brings, if it does.

    A second one would keep a second set of threads, which wait actively on the same cores.
    """
    root = Path(torch.__file__).parent
    folders = (root / "lib", root.parent / "torch.libs")
    return next((path for folder in folders for path in sorted(folder.glob("libgomp*.so*"))), None)


def _compile(compiler: list[str], identity: str, real: str, source: str, work: Path) -> Path:
    """Return a shared library, with torch's OpenMP, another one or none: what can be had."""
    target = work / "rules.o", work / "rules.so"
    compile_ = [*compiler, *FLAGS, f"-DFW_REAL={real}", "-c", str(SOURCE / f"{source}.cpp"), "-o"]
    link = [*compiler, "-shared", str(target[0]), "-o", str(target[1])]
    shared = _openmp_library()
    attempts: list[tuple[list[str], list[str]]] = [(["-fopenmp"], ["-fopenmp"]), ([], [])]
    if shared is not None and "__clang__" not in identity:
        attempts.insert(0, (["-fopenmp"], [str(shared)]))
    for last, (compile_flags, link_flags) in enumerate(attempts, start=1 - len(attempts)):
        try:
            commands.run([*compile_, str(target[0]), *compile_flags], temporary=str(work))
            commands.run([*link, *link_flags], temporary=str(work))
            break
        except commands.CommandError:
            if last == 0:
                raise
    return target[1]
