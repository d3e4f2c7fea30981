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
    done = run(folder, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


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


@pytest.mark.slow
@pytest.mark.parametrize("backends", [True, False], ids=["back ends", "without BACKENDS"])
def test_a_rule_of_two_files_is_found_by_the_suite_and_lives(copy, backends):
    rule = "fwlight/ops/mine_rule.py"
    assert add(copy, "An update rule") == ["conf/model/update_rule/mine.yaml", rule]
    if not backends:
        text = (copy / rule).read_text(encoding="utf-8")
        (copy / rule).write_text(text.replace("BACKENDS", "FORMS"), encoding="utf-8")
    assert (
        run_tests(copy, "tests/ops/test_rules.py", "tests/ops/test_backends.py", "-k", "mine") > 50
    )
    if backends:
        assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 8
        assert run_tests(copy, "tests/models/test_named_models.py", "-k", "mine") == 4
        wrong = {"model.update_rule.backend=chunk": "'chunk' is none of auto, recurrent"}
        assert_lives(copy, "model/update_rule=mine", wrong=wrong)


@pytest.mark.slow
def test_an_action_of_two_files_runs_and_is_explained(copy):
    files = ["conf/action/count.yaml", "fwlight/run/actions/counting.py"]
    assert add(copy, "An action") == files
    assert run_tests(copy, "tests/test_config.py", "-k", "action and count") == 1
    told = run(copy, "train.py", "--help").stdout
    assert "  action=count     ckpt=PATH [output=FILE] count.unit\n" in told
    ckpt = "ckpt=tests/compatibility/0.1/retrieval_dpfp.ckpt"
    counted = run(copy, "train.py", "action=count", ckpt, "count.unit=2")
    numbers, unit = counted.stdout.split(" x ")
    assert (counted.returncode, unit, counted.stderr) == (0, "2\n", "")
    written = run(copy, "train.py", "action=count", ckpt, "output=counted")
    assert (written.returncode, written.stdout) == (0, "")
    assert (copy / "counted").read_text() == f"{2 * float(numbers):g} x 1\n"
    for wrong, part in (("count.unit=0", "at least 1"), ("count.units=3", "count.unit?")):
        refused = run(copy, "train.py", "action=count", ckpt, wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: ")
        assert refused.stderr.count("\n") == 1
        assert part in refused.stderr


@pytest.mark.slow
def test_a_map_of_two_files_is_found_by_the_suite_and_lives(copy):
    assert len(add(copy, "A feature map")) == 2
    assert run_tests(copy, "tests/feature_maps/test_feature_maps.py", "-k", "mine") >= 6
    assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 4
    assert run_tests(copy, "tests/models/test_named_models.py", "-k", "mine") == 4
    assert_lives(copy, "model/feature_map=mine", wrong={"model.feature_map.nu=2": "is not a key"})


@pytest.mark.slow
def test_a_gate_of_two_files_is_found_by_the_suite_and_lives(copy):
    assert len(add(copy, "A gate")) == 2
    assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 1
    assert run_tests(copy, "tests/models/test_named_models.py", "-k", "mine") == 4
    gated = ["model=gated_deltanet", "model/decay=mine"]
    wrong = {"model.decay.divisor=0.5": "divisor=0.5 must be at least 1"}
    assert_lives(copy, *gated, wrong=wrong | {"model/decay=mien": "did you mean mine?"})


@pytest.mark.slow
def test_a_recurrent_mixer_of_two_files_is_found_by_the_suite_and_lives(copy):
    assert len(add(copy, "A recurrent mixer")) == 2
    assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 1
    assert run_tests(copy, "tests/models/test_named_models.py", "-k", "mine") == 7
    wrong = {"model.gain=0": "gain=0 must be positive", "model.gains=2": "is not a key"}
    assert_lives(copy, "model=mine_net", wrong=wrong)


@pytest.mark.slow
def test_a_named_model_of_one_file_is_found_by_the_suite_and_lives(copy):
    assert add(copy, "A named model") == ["conf/model/mine_model.yaml"]
    assert run_tests(copy, "tests/test_config.py", "-k", "mine") >= 1
    assert run_tests(copy, "tests/models/test_named_models.py", "-k", "mine") == 7
    assert_lives(copy, "model=mine_model", wrong={"model.key_norm=l3": "is not one of none, sum"})


@pytest.mark.slow
def test_a_task_of_two_files_is_found_by_the_suite_and_lives(copy):
    assert add(copy, "A task") == ["conf/task/mine.yaml", "tasks/mine.py"]
    assert run_tests(copy, "tests/test_config.py", "tests/test_imports.py", "-k", "mine") >= 2
    assert_lives(copy, "task=mine", text=False, wrong={"task.seq_len=7": "has no half"})
