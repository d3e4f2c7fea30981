"""compile=true, in real runs: the same numbers, checkpoints that go both ways, one line if not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwlight.ops import native
from fwlight.run import load_checkpoint
from tests.run.standin import rows
from tests.tasks.test_translation_data import ENGLISH, german

ROOT = Path(__file__).resolve().parent.parent
# What type checks wrap around functions under pytest cannot be compiled: a process of its own,
# which makes the runs that it is given one after another.
RUNS = """
import shlex, sys, train
for words in sys.argv[1:]:
    if code := train.main(shlex.split(words)):
        sys.exit(code)
"""
TASKS = {
    "lm": ["task=lm", "task.data=text", "task.batch_size=2", "task.seq_len=16"],
    "retrieval": ["task=retrieval", "task.n_keys=6", "trainer.log_every_n_steps=1"],
    "translation": [
        *("task=translation", "task.data=files", "task.vocab_size=100", "task.batch_tokens=100"),
        *("size.n_heads=1", "size.d_model=16"),
    ],
}


def runs(*words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUNS, *(" ".join(x) for x in words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def arguments(task: str, folder: Path) -> list[str]:
    """A run of four steps, evaluated after the second and the last, every step kept."""
    if task == "lm":
        path = folder / "text"
        path.write_text("the cat sat on the mat and the dog ran off .\n" * 200)
        data = [f"task.path={path}"]
    elif task == "translation":
        for split, english in (("train", ENGLISH), ("valid", ENGLISH[::9]), ("test", ENGLISH[::9])):
            (folder / f"{split}.en").write_text("\n".join(english) + "\n")
            (folder / f"{split}.de").write_text("\n".join(map(german, english)) + "\n")
        data = [f"task.{split}={folder / split}" for split in ("train", "valid", "test")]
    else:
        data = []
    size = [] if task == "retrieval" else ["size=tiny", "size.n_layers=1"]
    short = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    kept = ["callbacks.checkpoint.every_n_train_steps=1"]
    kept += ["callbacks.checkpoint.keep_every_n_train_steps=1", "logger=none"]
    return [*TASKS[task], *size, *data, *short, *kept]


@pytest.mark.slow
@pytest.mark.skipif(not native.can_run(torch.ones(1)), reason="no C++ compiler")
@pytest.mark.parametrize(
    "task", ["lm", *(pytest.param(x, marks=pytest.mark.full) for x in ("retrieval", "translation"))]
)
def test_a_run_may_be_compiled_from_any_step_to_any_other(task, tmp_path):
    plain = arguments(task, tmp_path)
    folders = {name: tmp_path / name for name in ("whole", "compiled", "after")}
    step = {name: f"{folder}/checkpoints/step-%06d.ckpt" for name, folder in folders.items()}
    done = runs(
        [*plain, f"run_dir={folders['whole']}"],
        # The second half compiled, and its second half again uncompiled.
        [*plain, f"run_dir={folders['compiled']}", f"resume={step['whole'] % 1}", "compile=true"],
        [*plain, f"run_dir={folders['after']}", f"resume={step['compiled'] % 3}"],
    )
    assert done.returncode == 0, done.stderr
    assert "resuming with" not in done.stderr  # no setting of the training has changed
    whole, compiled, after = (rows(folder) for folder in folders.values())
    losses = [key for key in whole if key[1] in ("train/loss", "val/loss", "test/loss")]
    assert {key for key in losses if key[0] > 1} == {key for key in compiled if key in losses}
    for found in (compiled, after):
        for key in set(losses) & set(found):
            assert float(found[key]) == pytest.approx(float(whole[key]), rel=1e-5), key
    weights = [load_checkpoint(step[name] % 4)["state_dict"] for name in folders]
    assert list(weights[0]) == list(weights[1]) == list(weights[2])


@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_one_line(tmp_path):
    words = [*arguments("retrieval", tmp_path), f"run_dir={tmp_path / 'run'}", "compile=true"]
    done = runs(words, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: compile=true fails (InvalidCxxCompiler")
    assert done.stderr.endswith("; set compile=false\n")
