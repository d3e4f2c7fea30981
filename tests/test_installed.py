"""What a wheel holds, and what of it runs without the extras."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cli.main import exit_code_and_line
from fwlight import __version__, extras

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("callbacks", "cli", "conf", "reports", "tasks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = "import sys; from setuptools.build_meta import build_wheel as build; build(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel of a copy of the tree: setuptools works in the folder that it packs."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fwlight", *BESIDE):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    """Return a folder with what pip would put among the packages."""
    folder = wheel.parent / "packages"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix() for path in found}


def test_wheel_holds_the_whole_tree_below_one_name(unpacked):
    assert {path.name for path in unpacked.iterdir()} == {
        "fwlight",
        f"fwlight-{__version__}.dist-info",
    }
    program = unpacked / "fwlight" / "program"
    assert {path.name for path in program.iterdir()} == {"train.py", *BESIDE}
    for name in BESIDE:
        assert files(program / name) == files(ROOT / name), name
    library = {name for name in files(unpacked / "fwlight") if not name.startswith("program/")}
    assert library == files(ROOT / "fwlight")
    assert "py.typed" in library


# None in sys.modules is what Python takes for a module that is not there.
BARE = """
import sys
absent = {absent}
sys.modules.update(dict.fromkeys(absent))
import torch
from functools import partial
import fwlight.diagnostics
from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
import fwlight.models
from fwlight.ops import delta_rule, sum_rule
for rule, norm in ((delta_rule, "sum"), (sum_rule, "none")):
    memory = partial(
        FastWeights,
        feature_map=partial(DPFPFeatureMap, nu=2),
        update_rule=rule,
        key_norm=norm,
    )
    layer = MultiHeadAttention(d_model=16, n_heads=2, d_head=8, memory=memory)
    layer(torch.randn(2, 20, 16))[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
from fwlight.__main__ import main
from fwlight.runs.__main__ import main as runs
for arguments in ([], ["--help"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as error:
        assert error.code == 2, error.code
"""


def test_library_needs_no_extra_and_commands_name_the_one_that_they_need(unpacked, tmp_path):
    absent = [module for modules in extras._EXTRAS.values() for module in modules]
    absent += ["fcntl", "pwd", "grp", "resource"]  # as on Windows
    absent.remove("filelock")  # torch brings it
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE.format(absent=absent)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked), "FWLIGHT_NATIVE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r"error: \w+ is not installed: pip install 'fwlight\[train\]'", line)


def test_extras_are_those_of_the_project():
    owners = packages_distributions()
    for extra, modules in extras._EXTRAS.items():
        named = {canonicalize_name(x) for m in modules for x in owners.get(m, [m])}
        lines = PROJECT["optional-dependencies"][extra]
        required = {canonicalize_name(Requirement(line).name) for line in lines}
        assert named == required - {"fwlight"}, extra


def no(module: str) -> ImportError:
    return ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.part")


def test_missing_module_is_found_among_the_causes():
    error = ValueError("cannot be built")
    error.__cause__ = no("sacrebleu")
    told = "sacrebleu is not installed: pip install 'fwlight[translation]'"
    assert extras.missing(error) == told
    assert exit_code_and_line(error) == (2, f"error: {told}")
    assert extras.missing(no("my_own_module")) is None
    assert extras.missing(ValueError("numpy")) is None
