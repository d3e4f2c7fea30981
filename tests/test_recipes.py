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
"""By part what chooses it, and what is told of wrong arguments."""

OBEY = """
import contextlib, io, json, sys
from train import main

def obey(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()

print("\\n" + json.dumps([obey(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def obey(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Exit codes and output of command lines, one after another in a process that begins there."""
    done = run(folder, "-c", OBEY, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(ended) for ended in json.loads(done.stdout.splitlines()[-1])]


def life(part: str) -> list[list[str]]:
    """Train two steps, go on for two, test, diagnose; then what is wrong."""
    chosen, wrong = LIVES[part]
    every = [*SMALL, *(TEXT if part != "task" else []), *chosen]
    here, ckpt = f"run_dir={part}", f"ckpt={part}/checkpoints/last.ckpt"
    return [
        [*every, "trainer.max_steps=2", here],
        [*every, "trainer.max_steps=4", here, "resume=auto"],
        ["action=test", ckpt],
        ["action=diagnose", ckpt, "diagnostics.capacity_draws=1", "diagnostics.report_sequences=4"],
        *([*every, argument, "run_dir=other"] for argument in wrong),
    ]


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


@pytest.fixture(scope="module")
def ended(extended) -> dict[str, list[tuple[int, str, str]]]:
    """How the lives of all parts went; one process, as it takes seconds to start one."""
    (extended / "text.txt").write_text("a few words to learn from , again\n" * 60)
    lives = {part: life(part) for part in LIVES}
    told = iter(obey(extended, [command for commands in lives.values() for command in commands]))
    return {part: [next(told) for _ in commands] for part, commands in lives.items()}


@pytest.mark.slow
@pytest.mark.parametrize("part", LIVES)
def test_what_two_files_add_lives(extended, ended, part):
    assert [code for code, *_ in ended[part][:4]] == [0] * 4, ended[part]
    summary = json.loads((extended / part / "summary.json").read_text())
    assert summary["global_step"] == 4
    assert (extended / part / "diagnosis.html").exists()
    for (code, _, err), told in zip(ended[part][4:], LIVES[part][1].values(), strict=True):
        assert code == 2, err
        (line,) = (x for x in err.splitlines() if not x.startswith("warning: "))
        assert line.startswith("error: ")
        assert told in line
    assert not (extended / "other").exists()


@pytest.mark.slow
def test_an_action_of_two_files_runs_and_is_explained(extended):
    count = ["action=count", "ckpt=tests/compatibility/0.1/retrieval_dpfp.ckpt"]
    more = {"count.unit=2": "", "output=counted": "", "count.unit=0": "at least 1"}
    more |= {"count.units=3": "count.unit?"}
    helped, counted, written, *refused = obey(extended, [["--help"], *([*count, x] for x in more)])
    assert "  action=count      ckpt=PATH [output=FILE] count.unit\n" in helped[1]
    numbers, unit = counted[1].split(" x ")
    assert (counted[0], unit, counted[2]) == (0, "2\n", "")
    assert written == (0, "", "")
    assert (extended / "counted").read_text() == f"{2 * float(numbers):g} x 1\n"
    for (code, out, err), part in zip(refused, [*more.values()][2:], strict=True):
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert part in err
