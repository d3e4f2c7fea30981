from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fwlight.feature_maps import EluFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
from fwlight.models import DecoderLM, chunked
from fwlight.ops import delta_rule
from fwlight.types import IGNORE_INDEX

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no chunked cross-entropy"
)


def make(output: str) -> DecoderLM:
    torch.manual_seed(0)
    memory = partial(FastWeights, feature_map=EluFeatureMap, update_rule=delta_rule)
    model = DecoderLM(
        **{"vocab_size": 41, "d_model": 6, "n_layers": 1, "n_heads": 1, "d_head": 6, "d_ff": 8},
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=partial(memory, key_norm="sum")),
        output=output,
        init_std=0.5,
    ).double()
    nn.init.normal_(model.output.bias)
    return model


@pytest.mark.parametrize("chunk", [1, 7, 20, 4096])
def test_values_and_gradients_are_those_of_all_logits(chunk, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(41, (2, 10), generator=generator)
    targets = torch.randint(41, (2, 10), generator=generator)
    targets[0, 3:5] = IGNORE_INDEX
    weights = torch.rand(targets.shape, generator=generator, dtype=torch.float64)
    found = {}
    for output in ("chunked", "dense"):
        model = make(output)
        nll = model.nll(model.features(tokens)[0], targets)
        gradients = torch.autograd.grad((nll * weights).sum(), list(model.parameters()))
        found[output] = (nll, *gradients)
    for one, other in zip(found["chunked"], found["dense"], strict=True):
        close(one, other)
    assert not found["chunked"][0][0, 3:5].any()


def test_no_targets_and_no_positions_cost_nothing():
    model = make("chunked")
    hidden, _ = model.features(torch.zeros(1, 4, dtype=torch.int64))
    nll = model.nll(hidden, torch.full((1, 4), IGNORE_INDEX))
    assert not nll.any()
    assert model.nll(hidden[:, :0], torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 0)


def test_parameters_are_those_of_the_dense_output():
    assert make("chunked").state_dict().keys() == make("dense").state_dict().keys()
    model = make("chunked")
    assert model.output.weight is model.embedding.weight


def test_autocast_computes_in_float32():
    model = make("chunked").float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = model.features(torch.zeros(2, 5, dtype=torch.int64))
        nll = model.nll(hidden, torch.ones(2, 5, dtype=torch.int64))
    assert nll.dtype == torch.float32
    nll.sum().backward()
    assert model.embedding.weight.grad.dtype == torch.float32


def test_torch_without_it_is_named(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy")
    with pytest.raises(ValueError, match="use 'dense' or 'adaptive'"):
        make("chunked")
