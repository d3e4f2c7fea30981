"""Classification: what is logged is the loss and the accuracy of all images; resume is exact."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fwlight.training.classification import ClassificationModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, ImageBatch
from train import main


class _Bright(torch.nn.Module):
    """Two logits: the mean brightness is the second one."""

    def forward(self, images):
        return torch.stack([torch.full_like(images[:, 0, 0, 0], 0.5), images.mean((1, 2, 3))], -1)


def test_accuracy_and_loss_are_of_all_images_that_have_a_class():
    module = ClassificationModule(_Bright(), optimizer=OptimizerConfig(), max_steps=200)
    images = torch.tensor([0, 255, 255, 0, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    batch = ImageBatch(images, torch.tensor([0, 1, 0, IGNORE_INDEX, IGNORE_INDEX]))
    for part in (slice(1), slice(1, 5)):
        module.validation_step(ImageBatch(*(x[part] for x in batch)), 0)
    assert module.accuracy.compute()["acc"].item() == pytest.approx(2 / 3)
    right, wrong = (torch.tensor(0.5).exp().add(1).log() - x for x in (0.5, 0.0))
    expected = (2 * right + wrong) / 3
    assert module.evaluation.compute()["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    losses = module(batch)
    assert losses[3:].tolist() == [0, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        noise = torch.randint(0, 128, (8, 8), generator=generator, dtype=torch.uint8)
        noise[:, (i % 2) * 4 :][:, :4] += 100  # which half is lighter
        (path / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(noise.numpy()).save(path / f"{i % 2}" / f"{i}.png")
    return path


def test_image_run_learns_resumes_exactly_and_is_tested_and_diagnosed(folder, tmp_path, capsys):
    point = ["task=image", "task.data=folder", f"task.path={folder}", "task.batch_size=12"]
    point += ["size=tiny", "logger=none", "trainer.log_every_n_steps=1", "task.warp=0"]
    point += ["trainer.max_steps=30", "trainer.val_check_interval=10", "model.directions=two"]
    point += ["diagnostics.every_n_steps=10", "callbacks.checkpoint.keep_every_n_train_steps=10"]
    point += ["callbacks=[default,lpq]", "callbacks.lpq.mode=project", "callbacks.lpq.bound=4"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main([*point, f"run_dir={whole}"]) == 0
    middle = next((whole / "checkpoints").glob("*10.ckpt"))
    assert main([*point, f"run_dir={again}", f"resume={middle}"]) == 0
    first, second = (json.loads((x / "summary.json").read_text()) for x in (whole, again))
    timed = {"tokens_per_second", "wall_seconds"}
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }
    assert first["test/acc"] == 1.0
    capsys.readouterr()
    ckpt = f"ckpt={whole}/checkpoints/last.ckpt"
    assert main(["action=test", ckpt]) == 0
    shown = capsys.readouterr().out
    assert "4 images; the checkpoint's own" in shown
    assert main(["action=diagnose", ckpt, "diagnostics.capacity_draws=1"]) == 0
    assert "backwards/layer1" in capsys.readouterr().out
    assert main(["action=generate", ckpt, "prompt=x"]) == 2
    assert "has none" in capsys.readouterr().err
