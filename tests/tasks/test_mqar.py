"""The recall task as a data module: what it refuses, what is fixed, and Lightning's own resume."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fwlight.types import DataError
from tasks.mqar import MQARDataModule

SMALL = {"vocab_size": 20, "seq_len": 16, "n_pairs": (2, 4), "batch_size": 4, "eval_sequences": 10}


def module(**changes) -> MQARDataModule:
    return MQARDataModule(**SMALL | changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"task\.batch_size=0"),
        ({"eval_sequences": 0}, r"task\.eval_sequences=0"),
        ({"n_pairs": ()}, r"task\.n_pairs=\[\]"),
        ({"n_pairs": (2, 2)}, r"task\.n_pairs=\[2, 2\]"),
        ({"n_pairs": (0, 2)}, r"task\.n_pairs=\[0, 2\]"),
        ({"seq_len": 15}, r"task\.seq_len=15 .* at least 16"),
        ({"vocab_size": 9}, r"task\.vocab_size=9 .* at least 10"),
        ({"power": 0.0}, r"task\.power=0\.0"),
    ],
)
def test_mqar_refuses_sizes_that_hold_too_little(wrong, message):
    with pytest.raises(DataError, match=message):
        module(**wrong)


def test_mqar_smallest_sizes_work():
    data = module(vocab_size=10, seq_len=16)
    (inputs, targets), *_ = data.train_dataloader()
    assert inputs.shape == targets.shape == (4, 16)


def test_mqar_evaluation_is_fixed_and_apart_from_training():
    val, again = (list(module(seed=seed).val_dataloader()) for seed in (1, 2))
    test = list(module().test_dataloader())
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(val, again, strict=True))
    assert not torch.equal(val[0].inputs, test[0].inputs)
    counts = torch.cat([(batch.targets >= 0).sum(1) for batch in val])
    assert [(counts == n).sum() for n in (2, 4)] == [10, 10]
    train = [next(iter(module(seed=seed).train_dataloader())) for seed in (1, 2)]
    assert not torch.equal(train[0].inputs, train[1].inputs)


def test_mqar_checkpoint_of_other_sequences_is_refused():
    state = module().state_dict()
    module(batch_size=8, seed=9, eval_sequences=3).load_state_dict(state)
    for changes in ({"vocab_size": 40}, {"n_pairs": (2,)}, {"seq_len": 32}, {"power": 1.0}):
        with pytest.raises(DataError, match=f"task.{next(iter(changes))}"):
            module(**changes).load_state_dict(state)


def test_mqar_prompts_are_numbers():
    data = module()
    assert data.decode(data.encode("3 12 4")) == "3 12 4"
    for prompt in ("The", "20", "-1"):
        with pytest.raises(DataError, match="0 to 19"):
            data.encode(prompt)


class _Recorder(lightning.LightningModule):
    """Remembers every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[bytes] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.inputs.numpy().tobytes())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(root, *, ckpt=None, limit=1.0) -> list[bytes]:
    recorder = _Recorder()
    trainer = lightning.Trainer(
        max_steps=9,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=4,
        limit_train_batches=limit,
        default_root_dir=root,
        callbacks=[ModelCheckpoint(root, save_top_k=-1, filename="{step}", every_n_train_steps=1)],
    )
    trainer.fit(recorder, module(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1.0, 3])
def test_mqar_resume_gives_the_same_batches_from_any_checkpoint(tmp_path, limit):
    whole = _fit(tmp_path, limit=limit)
    assert len(set(whole)) == (9 if limit == 1.0 else limit)
    for step in (1, 3, 4, 8):
        resumed = _fit(tmp_path / "again", ckpt=tmp_path / f"step={step}.ckpt", limit=limit)
        assert resumed == whole[step:], step
