"""The commands of the README and of its next pages: all compose, and some run at a tiny size."""

import re
import shlex
from pathlib import Path

import pytest

from cli.composition import compose_config
from cli.sweep import expand
from train import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "docs/models.md", "docs/tasks.md")]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


TRAINING = [words[words.index("train.py") + 1 :] for words in commands() if "train.py" in words]
TINY = ["size=tiny", "debug=fdr", "task.batch_size=2", "task.seq_len=16"]
TINY += ["callbacks.text_samples.max_new_tokens=3"]
QUICK = {
    "generate": ["generate.max_new_tokens=5"],
    "diagnose": [
        *("diagnostics.capacity_draws=1", "diagnostics.report_sequences=4"),
        "diagnostics.intervention_sequences=2",
    ],
}
"""By action what makes less of the same."""
OWN_TEXT = ["task.data=text", "task.path=my_book.txt"]


def test_readme_links_lead_somewhere_and_nothing_is_left_to_fill_in() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"\b[A-Z]+_[A-Z]+\b(?![=`.])", page.read_text(encoding="utf-8")), page


def test_readme_names_only_known_programs() -> None:
    assert TRAINING
    assert {words[0] for words in commands()} <= {
        "make",
        "python",
        "source",
        "tensorboard",
        "torchrun",
    }


def test_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


LONG = [words for words in TRAINING if re.search("=(retrieval_|abilities)", " ".join(words))]
"""Sweeps of hundreds of points."""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(words, marks=pytest.mark.full if words in LONG else (), id=" ".join(words))
        for words in TRAINING
    ],
)
def test_readme_command_composes(arguments: list[str]) -> None:
    if "--help" in arguments:
        return
    if "-m" in arguments:
        assert len(expand([word for word in arguments if word != "-m"])) > 1
    else:
        compose_config(arguments)


@pytest.mark.slow
def test_readme_story_runs_at_a_tiny_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train on one's own file, train, resume, test, generate: the commands that name files."""
    (tmp_path / "my_book.txt").write_text("the old man saw many ships .\n" * 2000)
    monkeypatch.chdir(tmp_path)
    story = [words for words in TRAINING if re.search(r"my_book|runs/first", " ".join(words))]
    assert len(story) == 6
    for arguments in story:
        words = list(arguments)
        action = next((x.removeprefix("action=") for x in words if x.startswith("action=")), "")
        more = QUICK.get(action, []) if action else [*TINY, *OWN_TEXT]
        words += [word for word in more if word not in words]
        assert main(words) == 0, (words, capsys.readouterr().err)


def test_readme_library_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    # 4 heads, each with 2 * 16 * 2 features and 16 values
    assert capsys.readouterr().out == f"{4 * 64 * 16}\n"
