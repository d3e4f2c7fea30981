"""Accuracy by number of pairs, and what the recall module adds to language modelling."""

from functools import partial

import pytest
import torch
from lightning import Trainer

from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.training.answers import AnswerAccuracy
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.training.recall import RecallModule
from fwlight.types import IGNORE_INDEX, LMBatch

X = IGNORE_INDEX


def network() -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(
        vocab_size=11,
        d_model=8,
        n_layers=1,
        n_heads=2,
        d_head=4,
        d_ff=8,
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=KeyValues),
    )


def batch(*pairs: int, seed: int = 1) -> LMBatch:
    """One row for each number of pairs; 0 is a row of padding."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(11, (len(pairs), 9), generator=generator)
    targets = torch.full_like(inputs, X)
    for row, n in enumerate(pairs):
        places = torch.randperm(9, generator=generator)[:n]
        targets[row, places] = torch.randint(11, (n,), generator=generator)
    return LMBatch(inputs, targets)


def test_accuracy_counts_targets_of_each_kind():
    metric = AnswerAccuracy(("pairs_1", "pairs_3"), {"odd": ("pairs_1", "pairs_3")})
    targets = torch.tensor([[X, 4, X, X], [1, 2, X, 3], [X, X, X, X], [5, 6, 7, X], [X, 9, X, X]])
    predictions = torch.where(targets == X, 4, targets)
    predictions[1, 1], predictions[3] = 0, 0
    kinds = torch.tensor([0, 1, -1, 1, 7])
    metric.update(predictions[:2], targets[:2], kinds[:2])
    metric.update(predictions[2:], targets[2:], kinds[2:])
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == {
        "acc": pytest.approx(4 / 8),
        "acc_pairs_1": 1.0,
        "acc_pairs_3": pytest.approx(2 / 6),
        "acc_odd": pytest.approx(3 / 7),
    }
    assert list(values) == metric.names


def test_accuracy_is_the_same_however_the_data_is_divided():
    data, kinds = batch(2, 4, 4, 0, 2, 4), torch.tensor([0, 1, 1, -1, 0, 1])
    predictions = torch.where(torch.rand(6, 9) < 0.5, data.targets, 0)
    whole = AnswerAccuracy(("pairs_2", "pairs_4"))
    whole.update(predictions, data.targets, kinds)
    ranks = [AnswerAccuracy(("pairs_2", "pairs_4")) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        mine = slice(rank, None, 2)
        metric.update(predictions[mine], data.targets[mine], kinds[mine])
        for name in ("right", "asked"):  # sums of states, as torchmetrics does over ranks
            assert metric._reductions[name].__name__ == "dim_zero_sum"
    for name in ("right", "asked"):
        assert torch.equal(sum(getattr(m, name) for m in ranks), getattr(whole, name))


def test_number_of_targets_is_the_kind():
    module = RecallModule(network(), optimizer=OptimizerConfig(), max_steps=200, n_pairs=(4, 2))
    assert module.kinds_of(batch(2, 4, 0, 3)).tolist() == [1, 0, -1, -1]
    assert module.monitored == ("val/loss", "val/acc", "val/acc_pairs_4", "val/acc_pairs_2")


def test_module_has_the_loss_of_language_modelling():
    config = OptimizerConfig()
    recall = RecallModule(network(), optimizer=config, max_steps=200, n_pairs=(2, 4))
    language = LanguageModelingModule(network(), optimizer=config, max_steps=200)
    data = batch(2, 4, 0)
    torch.testing.assert_close(recall(data), language(data), rtol=1e-5, atol=1e-6)
    assert (recall(data)[data.targets == X] == 0).all()
    assert list(recall.state_dict()) == list(language.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_module_reports_accuracy_of_both_splits():
    module = RecallModule(
        network(),
        optimizer=OptimizerConfig(lr=0.03, schedule="constant", warmup_steps=1),
        max_steps=100,
        n_pairs=(2, 4),
    )
    data = [batch(2, 4, 0, seed=1)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=100,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=50,
    )
    loader = partial(torch.utils.data.DataLoader, data, batch_size=None)
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    for split in ("val", "test"):
        values = [module.latest[f"{split}/{n}"] for n in ("acc", "acc_pairs_2", "acc_pairs_4")]
        assert values == [1.0, 1.0, 1.0]  # six targets learnt by heart
        assert module.latest[f"{split}/loss"] < 0.5
