"""What every module says of its batches to those who watch its memories."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fwlight.training.lm import LanguageModelingModule
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.training.recall import RecallModule
from fwlight.training.retrieval import RetrievalModule
from fwlight.training.translation import TranslationModule
from fwlight.types import (
    CarriedBatch,
    LMBatch,
    PackedPairs,
    RetrievalBatch,
    TranslationBatch,
)

IDS, OTHERS = torch.tensor([[3, 5, 7]]), torch.tensor([[1, 1, 1]])
OPTIONS = {"optimizer": OptimizerConfig(), "max_steps": 1}


@pytest.mark.parametrize(
    ("kind", "batch", "more"),
    [
        (LanguageModelingModule, LMBatch(IDS, OTHERS), {}),
        (LanguageModelingModule, CarriedBatch(IDS, OTHERS, True, False), {}),
        (RecallModule, LMBatch(IDS, OTHERS), {"n_pairs": [1]}),
        (RetrievalModule, RetrievalBatch(IDS, OTHERS, OTHERS, OTHERS), {}),
    ],
)
def test_one_stack_writes_inputs_or_keys(kind, batch, more):
    (sequences,) = kind(nn.Identity(), **OPTIONS, **more).sequences(batch).items()
    assert sequences[0] == ""
    assert torch.equal(sequences[1].tokens, IDS)
    assert sequences[1][1:] == (None, None)


def test_translation_writes_both_sides_and_leaves_padding_out():
    network = nn.Identity()
    network.pad_id = 0
    source, inputs = torch.tensor([[3, 5, 0]]), torch.tensor([[4, 0]])
    batch = TranslationBatch(source, inputs, inputs, torch.zeros(1))
    found = TranslationModule(network, **OPTIONS).sequences(batch)
    shown = {name: tuple(x.tolist() for x in sequences) for name, sequences in found.items()}
    a, b = [[False, False, True]], [[False, True]]
    assert shown == {
        "encoder": ([[3, 5, 0]], a, a),
        "decoder": ([[4, 0]], b, b),
        "cross": ([[3, 5, 0]], a, b),
    }


def test_packed_pairs_write_every_sentence_apart_where_all_is_written_before_it_is_read():
    network = nn.Identity()
    network.pad_id = 0
    source, source_starts = torch.tensor([[3, 5, 7, 0]]), torch.tensor([[1, 0, 1, 1]]).bool()
    inputs, input_starts = torch.tensor([[4, 6, 0]]), torch.tensor([[1, 1, 1]]).bool()
    batch = PackedPairs(source, source_starts, inputs, input_starts, inputs)
    found = TranslationModule(network, **OPTIONS).sequences(batch)
    shown = {name: tuple(x.tolist() for x in sequences) for name, sequences in found.items()}
    apart, a = [[3, 5], [7, 0], [0, 0]], [[False, False], [False, True], [True, True]]
    b = [[False, False, True]]
    assert shown == {
        "encoder": (apart, a, a),
        "decoder": ([[4, 6, 0]], b, b),
        "cross": (apart, a, [[False], [False], [True]]),
    }


def test_a_task_need_not_say_anything():
    assert TrainingModule(nn.Identity(), **OPTIONS).sequences(SimpleNamespace()) == {}
