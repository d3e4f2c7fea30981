"""Lightning's own resume with our loader: the same batches from any step on, epochs included."""

import logging

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tasks.lm import LanguageModelingDataModule

MAX_STEPS, PER_EPOCH = 13, 5


class _Recorder(lightning.LightningModule):
    """Remembers the first token of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(int(batch.inputs[0, 0]))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.log("val", self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    words = "\n".join(f"word{i}" for i in range(0, 2 * 4 * PER_EPOCH // 2))
    for split in ("train", "valid", "test"):
        (path / f"wiki.{split}.tokens").write_text(words)
    return path


def _fit(text, root, *, ckpt=None, limit=1.0, max_steps=MAX_STEPS, **saving) -> list[int]:
    data = LanguageModelingDataModule(data="wikitext", path=text, batch_size=2, seq_len=4)
    module = _Recorder()
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=5,
        limit_train_batches=limit,
        default_root_dir=root,
        callbacks=[ModelCheckpoint(root, save_top_k=-1, filename="{step}", **saving)],
    )
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1.0, 3])
@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_train_steps": 1},
        {"monitor": "val", "save_on_train_epoch_end": False},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    ],
    ids=["every step", "after validation", "every epoch"],
)
def test_resume_gives_the_same_batches_from_any_checkpoint(text, tmp_path, limit, saving):
    whole = _fit(text, tmp_path, limit=limit, **saving)
    assert len(whole) == MAX_STEPS
    per_epoch = PER_EPOCH if limit == 1.0 else limit
    assert len(set(whole)) == per_epoch
    assert whole[per_epoch:] == whole[:-per_epoch]
    checkpoints = sorted(tmp_path.glob("step=*.ckpt"))
    assert len(checkpoints) >= 2
    for path in checkpoints:
        step = int(path.stem.removeprefix("step="))
        resumed = _fit(text, tmp_path / "again", ckpt=path, limit=limit, **saving)
        assert resumed == whole[step:], path.name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("max_steps", range(4, 12))
def test_finished_run_is_prolonged_with_the_next_batches(text, tmp_path, max_steps):
    saving = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "save_last": True}
    whole = _fit(text, tmp_path / "whole", **saving)
    first = _fit(text, tmp_path / "cut", max_steps=max_steps, **saving)
    assert first == whole[:max_steps]
    ckpt = tmp_path / "cut" / "last.ckpt"
    step = torch.load(ckpt, weights_only=True)["global_step"]
    assert step in (max_steps, PER_EPOCH, 2 * PER_EPOCH)
    assert _fit(text, tmp_path / "more", ckpt=ckpt, **saving) == whole[step:]
