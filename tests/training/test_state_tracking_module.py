"""Accuracies by length, and what a guess is scaled to."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.training.optim import OptimizerConfig
from fwlight.training.state_tracking import StateTrackingModule
from tasks.state_tracking import StateTrackingDataModule

LENGTHS = (6, 9, 14)


def module(trained: int = 6) -> StateTrackingModule:
    network = DecoderLM(
        vocab_size=3,
        d_model=8,
        n_layers=1,
        n_heads=2,
        d_head=4,
        d_ff=8,
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=KeyValues),
    )
    options = {"test_lengths": LENGTHS, "trained": trained}
    return StateTrackingModule(network, optimizer=OptimizerConfig(), max_steps=200, **options)


def test_kind_is_the_range_of_the_length():
    data = StateTrackingDataModule(train_length=(3, 6), test_lengths=LENGTHS, eval_sequences=20)
    kinds = [set(module().kinds_of(batch).tolist()) for batch in data.test_dataloader()]
    # A row that pads a batch has no token, and no target that would count.
    assert [kind - {0} for kind in kinds] == [set(), {1}, {2}]


def test_scaled_is_0_for_a_guess_and_1_for_all():
    tracking = module()
    tracking._trainer = SimpleNamespace(datamodule=SimpleNamespace(chance=0.25))
    targets = torch.tensor([[1], [1], [1], [1], [2], [1], [1], [1]])
    kinds = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])
    tracking.accuracy.update(torch.ones(8, 1, dtype=torch.int64), targets, kinds)
    found = tracking.answer_metrics()
    assert found["acc_length_9"] == 3 / 4
    assert found["scaled_acc_length_9"] == pytest.approx(2 / 3)
    assert found["acc_beyond"] == 5 / 6  # all that is longer than 6
    assert found["scaled_acc_length_6"] == found["scaled_acc_length_14"] == 1
    assert {f"val/{name}" for name in found} | {"val/loss"} == set(tracking.monitored)


def test_without_longer_ones_there_is_nothing_beyond():
    assert not any("beyond" in name for name in module(trained=14).monitored)
