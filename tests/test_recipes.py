"""The steps of CONTRIBUTING.md, taken in a copy of the repository, and the tests they promise."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RULE = "fwlight/ops/mine_rule.py"
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


def copy(to: Path) -> Path:
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(ROOT / name, to / name)
    return to


def run_tests(folder: Path, *arguments: str) -> list[str]:
    """Run tests of the copy, and return the names of those that passed; all that ran must have."""
    done = run(folder, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return re.findall(r"^(tests/\S+::.+) PASSED", done.stdout, re.MULTILINE)


SMALL = ["size=tiny", "logger=none", "trainer.log_every_n_steps=1", "diagnostics.every_n_steps=1"]
TEXT = ["task.data=text", "task.path=text.txt", "task.batch_size=4", "task.seq_len=8"]
TEXT += ["task.min_count=1", "callbacks.text_samples.max_new_tokens=3"]

LIFE = """
import sys
from train import main
arguments, two, folder = sys.argv[1:], "trainer.max_steps=2", "run_dir=run"
codes = [main([*arguments, two, folder])]
codes += [main([*arguments, "trainer.max_steps=4", folder, "resume=auto"])]
codes += [main([f"action={x}", "ckpt=run/checkpoints/last.ckpt"]) for x in ("test", "diagnose")]
sys.exit(codes != [0] * 4)
"""


def add(folder: Path, section: str) -> list[str]:
    """Write the files of a section's steps and no other; return their paths."""
    files = steps(section)
    for path, text in files.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text, encoding="utf-8")
    return sorted(files)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def assert_lives(folder: Path, *arguments: str, text: bool = True, wrong: dict[str, str]) -> None:
    """Train two steps, go on for two, test, diagnose; and be refused in one line for each wrong."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "text.txt").write_text("a few words to learn from , again\n" * 60)
    every = [*SMALL, *(TEXT if text else []), *arguments]
    lived = run(folder, "-c", LIFE, *every)
    assert lived.returncode == 0, lived.stdout[-2000:] + lived.stderr[-2000:]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["global_step"] == 4
    assert (folder / "run" / "diagnosis.html").exists()
    for argument, told in wrong.items():
        refused = run(folder, "train.py", *every, argument, "run_dir=other")
        assert refused.returncode == 2, refused.stderr
        (line,) = (x for x in refused.stderr.splitlines() if not x.startswith("warning: "))
        assert line.startswith("error: ")
        assert told in line
        assert not (folder / "other").exists()


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """Return a copy with all that the recipes add, and nothing else edited."""
    folder = copy(tmp_path_factory.mktemp("extended"))
    assert add(folder, "An update rule") == ["conf/model/update_rule/mine.yaml", RULE]
    assert add(folder, "A named model") == ["conf/model/mine_model.yaml"]
    assert add(folder, "A task") == ["conf/task/mine.yaml", "tasks/mine.py"]
    assert add(folder, "An action") == ["conf/action/count.yaml", "fwlight/run/actions/counting.py"]
    for section in ("A feature map", "A gate", "A recurrent mixer"):
        assert len(add(folder, section)) == 2
    return folder


@pytest.mark.slow
def test_what_two_files_add_is_found_by_the_suite(extended):
    """The shared tests, which find parts by themselves, hold for every part of the recipes."""
    found = {
        ("tests/ops/test_rules.py", "tests/ops/test_backends.py"): 51,
        ("tests/feature_maps/test_feature_maps.py",): 6,
        ("tests/test_config.py", "tests/test_imports.py"): 18,
        ("tests/models/test_named_models.py",): 26,
    }
    every = [path for paths in found for path in paths]
    passed = run_tests(extended, *every, "-k", "mine or (test_config and action and count)")
    for paths, least in found.items():
        assert sum(path in name for name in passed for path in paths) >= least, paths
    assert any("count" in name for name in passed)


@pytest.mark.full
def test_a_rule_without_back_ends_is_found_by_the_suite(tmp_path):
    add(copy(tmp_path), "An update rule")
    text = (tmp_path / RULE).read_text(encoding="utf-8")
    (tmp_path / RULE).write_text(text.replace("BACKENDS", "FORMS"), encoding="utf-8")
    names = "tests/ops/test_rules.py", "tests/ops/test_backends.py"
    assert len(run_tests(tmp_path, *names, "-k", "mine")) > 50


LIVES = {
    "rule": (
        ["model/update_rule=mine"],
        {"model.update_rule.backend=chunk": "'chunk' is none of auto, recurrent"},
    ),
    "map": (["model/feature_map=mine"], {"model.feature_map.nu=2": "is not a key"}),
    "gate": (
        ["model=gated_deltanet", "model/decay=mine"],
        {
            "model.decay.divisor=0.5": "divisor=0.5 must be at least 1",
            "model/decay=mien": "did you mean mine?",
        },
    ),
    "recurrent mixer": (
        ["model=mine_net"],
        {"model.gain=0": "gain=0 must be positive", "model.gains=2": "is not a key"},
    ),
    "named model": (["model=mine_model"], {"model.key_norm=l3": "is not one of none, sum"}),
    "task": (["task=mine"], {"task.seq_len=7": "has no half"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", LIVES)
def test_what_two_files_add_lives(extended, part):
    arguments, wrong = LIVES[part]
    assert_lives(extended, *arguments, text=part != "task", wrong=wrong)


@pytest.mark.slow
def test_an_action_of_two_files_runs_and_is_explained(extended):
    told = run(extended, "train.py", "--help").stdout
    assert "  action=count      ckpt=PATH [output=FILE] count.unit\n" in told
    ckpt = "ckpt=tests/compatibility/0.1/retrieval_dpfp.ckpt"
    counted = run(extended, "train.py", "action=count", ckpt, "count.unit=2")
    numbers, unit = counted.stdout.split(" x ")
    assert (counted.returncode, unit, counted.stderr) == (0, "2\n", "")
    written = run(extended, "train.py", "action=count", ckpt, "output=counted")
    assert (written.returncode, written.stdout) == (0, "")
    assert (extended / "counted").read_text() == f"{2 * float(numbers):g} x 1\n"
    for wrong, part in (("count.unit=0", "at least 1"), ("count.units=3", "count.unit?")):
        refused = run(extended, "train.py", "action=count", ckpt, wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: ")
        assert refused.stderr.count("\n") == 1
        assert part in refused.stderr
