"""Whatever updates weights, a resumed training is the uninterrupted one: through train.py."""

import json
from pathlib import Path

import pytest
import torch

from fwlight.run import load_checkpoint
from train import main

SMALL = [
    *("task=lm", "size=tiny", "size.n_layers=2", "task.data=text", "task.batch_size=4"),
    *("task.seq_len=8", "task.min_count=1", "logger=none", "callbacks=none"),
    *("trainer.log_every_n_steps=1", "trainer.val_check_interval=2", "trainer.max_steps=4"),
    *("optimizer.warmup_steps=1", "model=gated_deltanet", "size.dropout=0.2"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a few words to learn from , again and again\n" * 80, encoding="utf-8")
    return f"task.path={path}"


def fit(folder: Path, *arguments: str) -> dict:
    """Train; return the summary."""
    assert main([*SMALL, *arguments, f"run_dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def last(folder: Path) -> dict:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


def curve(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[1:]


def rates(folder: Path, name: str = "train/lr") -> list[float]:
    """Return the learning rate of every update."""
    found = (line.split(",") for line in curve(folder))
    return [float(value) for _, metric, value in found if metric == name]


def resumed(folder: Path, *arguments: str) -> Path:
    """Train for 4 updates; hold a training that goes on from the second to it; return its run."""
    kept = "callbacks.checkpoint.keep_every_n_train_steps=2"
    whole = fit(folder / "whole", *arguments, kept)
    middle = folder / "whole" / "checkpoints" / "step-000002.ckpt"
    again = fit(folder / "again", *arguments, f"resume={middle}")
    for name in ("state_dict", "optimizer_states", "metrics"):
        expected, found = last(folder / "whole")[name], last(folder / "again")[name]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    later = [line for line in curve(folder / "whole") if int(line.split(",")[0]) > 2]
    assert curve(folder / "again") == later
    for name in ("test/loss", "val/best_loss", "tested_checkpoint"):
        assert again[name] == whole[name]
    return folder / "whole"


def test_warmup_stable_decay(text, tmp_path):
    run = resumed(tmp_path, text, "optimizer.schedule=wsd", "optimizer.decay_steps=2")
    assert rates(run) == pytest.approx([1e-3, 1e-3, 5e-4, 0.0])
