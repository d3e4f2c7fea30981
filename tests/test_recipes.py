"""The steps of CONTRIBUTING.md, taken in a copy of the repository, and the tests they promise."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("fwlight", "tests", "conf", "cli", "tasks", "callbacks", "reports", "benchmarks")


def steps(section: str) -> dict[str, str]:
    """What a section says to write: the code below the first path of every step, by that path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = {}
    for step in re.split(r"\n(?=\d\. )", body):
        code = re.search(r"```\w+\n(.*?)```", step, re.DOTALL)
        path = re.search(r"`([\w/]+\.\w+)`", step)
        if code and path:
            found[path[1]] = textwrap.dedent(f"   {code[1].strip()}\n")
    return found


def insert(path: Path, before: str, text: str) -> None:
    old = path.read_text(encoding="utf-8")
    assert old.count(before) == 1, before
    path.write_text(old.replace(before, text + before), encoding="utf-8")


def export(package: Path, module: str, name: str) -> None:
    insert(
        package, "__all__ = [\n", f"from fwlight.{package.parent.name}.{module} import {name}\n\n"
    )
    text = package.read_text(encoding="utf-8")
    package.write_text(text.replace("__all__ = [\n", f'__all__ = [\n    "{name}",\n'))


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run_tests(folder: Path, *arguments: str) -> int:
    """Run tests of the copy, and return how many passed; all that ran must have."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("backends", [True, False], ids=["back ends", "without BACKENDS"])
def test_a_rule_added_step_by_step_is_found_by_the_suite_and_passes(copy, backends):
    files = steps("An update rule")
    reference = files.pop("tests/reference.py")
    assert sorted(files) == ["conf/model/update_rule/mine.yaml", "fwlight/ops/mine_rule.py"]
    for path, text in files.items():
        if not backends:
            text = text.replace("BACKENDS", "FORMS")
        (copy / path).write_text(text, encoding="utf-8")
    export(copy / "fwlight" / "ops" / "__init__.py", "mine_rule", "mine_rule")
    branch = textwrap.indent(reference, " " * 8)
    insert(copy / "tests" / "reference.py", "        else:\n            raise ValueError", branch)
    assert (
        run_tests(copy, "tests/ops/test_rules.py", "tests/ops/test_backends.py", "-k", "mine") > 50
    )
    if backends:
        assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 8


@pytest.mark.slow
def test_a_map_added_step_by_step_is_found_by_the_suite_and_passes(copy):
    files = steps("A feature map")
    assert sorted(files) == ["conf/model/feature_map/mine.yaml", "fwlight/feature_maps/mine.py"]
    for path, text in files.items():
        (copy / path).write_text(text, encoding="utf-8")
    export(copy / "fwlight" / "feature_maps" / "__init__.py", "mine", "MineFeatureMap")
    maps = copy / "tests" / "feature_maps" / "test_feature_maps.py"
    with pytest.raises(AssertionError, match="1 failed"):
        run_tests(copy, str(maps), "-k", "exported")
    insert(maps, "MAPS = {\n", "from fwlight.feature_maps import MineFeatureMap\n\n")
    text = maps.read_text(encoding="utf-8")
    maps.write_text(text.replace("MAPS = {\n", 'MAPS = {\n    "mine": MineFeatureMap,\n'))
    assert run_tests(copy, str(maps), "-k", "mine or exported") >= 7
    assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 4
