"""Each task killed in an epoch and resumed: with batches made ahead, accumulated, over ranks."""

import os
import signal
import time

import pytest
import torch
from PIL import Image

from tests.faults.processes import TINY, Running, assert_same_run, run

SHORT = (
    *("trainer.max_steps=24", "trainer.val_check_interval=7", "trainer.log_every_n_steps=1"),
    *("optimizer.warmup_steps=4", "callbacks.checkpoint.every_n_train_steps=5"),
)
TASKS = {
    "lm": (*TINY, "task.path={text}", "task.context=carried", "task.eval=carried"),
    "translation": (
        *("task=translation", *SHORT, "size=tiny", "task.data=files", "task.vocab_size=100"),
        *("task.train={pairs}", "task.valid={pairs}", "task.test={pairs}"),
        *("task.batch_tokens=60", "translate.beam=2", "trainer.val_check_interval=14"),
        "task.packing=true",
    ),
    "retrieval": (
        *("task=retrieval", *SHORT, "task.setting=update", "task.n_keys=6", "task.batch_size=4"),
        *("task.redraw_eval=true", "task.eval_length=n_keys"),
    ),
    "mqar": (
        *("task=mqar", *SHORT, "model=deltanet", "size=tiny", "size.dropout=0.1"),
        *("task.vocab_size=20", "task.seq_len=16", "task.n_pairs=[1,3]", "task.batch_size=4"),
        "task.eval_sequences=8",
    ),
    "image": (
        *("task=image", *SHORT, "task.data=folder", "task.path={images}", "size=tiny"),
        *("task.batch_size=4", "model.directions=two"),
    ),
    "catbabi": (
        *("task=catbabi", *SHORT, "size.d_model=16", "size.d_head=4", "task.n_stories=10"),
        *("task.batch_size=4", "task.eval_batch_size=4", "task.seq_len=24"),
    ),
    "graph_pomdp": (
        *("task=graph_pomdp", *SHORT, "size.d_model=8", "size.d_head=4", "task.n_graphs=7"),
        *("task.batch_size=4", "task.environment.episode_length=9"),
        "task.randomize_train=true",
    ),
}
HARDER = {
    "batches made ahead": ("task.num_workers=2",),
    "accumulated": ("trainer.accumulate_grad_batches=2", "task.num_workers=1"),
    "two ranks": ("task.num_workers=1",),
}


@pytest.fixture(scope="module")
def pairs(text, tmp_path_factory):
    """A hundred pairs, each the reverse of the other."""
    name = tmp_path_factory.mktemp("pairs") / "pairs"
    lines = [" ".join(line.split()[: 2 + i % 7]) for i, line in enumerate(text.open()) if i < 100]
    reversed_ = [" ".join(reversed(line.split())) for line in lines]
    for language, side in (("en", lines), ("de", reversed_)):
        name.with_suffix(f".{language}").write_text("".join(f"{line}\n" for line in side))
    return name


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        Image.new("L", (4, 4), 5 * i).save(folder / str(i % 2) / f"{i}.png")
    return folder


def cases():
    for task in TASKS:
        for name in HARDER:
            # What all tasks share is tried with one of them in the short run.
            marks = () if (task, name) == ("retrieval", "batches made ahead") else pytest.mark.full
            yield pytest.param(task, name, marks=marks, id=f"{task}, {name}")


@pytest.mark.fault(1)
@pytest.mark.parametrize(("task", "name"), cases())
def test_every_task_resumes_exactly(task, name, text, pairs, images, tmp_path, free_port) -> None:
    places = {"text": text, "pairs": pairs, "images": images}
    port = free_port if name == "two ranks" else None
    given = {}  # a later value of a key replaces an earlier one
    for argument in (*TASKS[task], *HARDER[name]):
        given[argument.partition("=")[0]] = argument.format(**places)

    def start(folder, *arguments, **settings):
        words = [*given.values(), f"run_dir={tmp_path / folder}", "resume=auto", *arguments]
        output = tmp_path / f"{folder}-output"
        return run(words, folder=output, port=port, timeout=120, **settings)

    # Whoever makes the batches, they are the same.
    whole = start("whole", "task.num_workers=0")
    assert whole.code == 0, whole.err
    killed = start("run", fault={"kind": "kill", "step": 13})
    assert killed.code == -signal.SIGKILL, killed.err
    ended = start("run")
    assert ended.code == 0, ended.err
    assert "after step 10" in ended.out
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.fault(8)
@pytest.mark.full
def test_signal_to_the_whole_group_leaves_the_workers_until_the_run_has_saved(
    tiny, tmp_path
) -> None:
    told = tmp_path / "told"
    process = Running(
        [*tiny, "task.num_workers=2", f"run_dir={tmp_path / 'run'}"],
        folder=tmp_path / "output",
        fault={"kind": "announce", "step": 13, "file": str(told), "seconds": 2},
    )
    while not told.exists():
        time.sleep(0.05)
    assert len(process.members()) == 3
    os.killpg(process.pid, signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 143, ended.err
    assert len(ended.errors) == 1
    assert process.orphans() == []
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 13
