from functools import partial

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap, EluFeatureMap, FAVORFeatureMap, TanhFeatureMap
from fwlight.mixers import FastWeights, KeyValues
from fwlight.models import Retriever
from fwlight.ops import delta_rule, fwm_rule, sum_rule

D_HEAD, N_KEYS, N_VALUES = 4, 5, 7
fast = partial(FastWeights, feature_map=DPFPFeatureMap)
favor = partial(FAVORFeatureMap, D_HEAD, 6)
MEMORIES = {
    "softmax": KeyValues,
    "linear": partial(fast, feature_map=EluFeatureMap, update_rule=sum_rule, read_norm="output"),
    "performer": partial(fast, feature_map=favor, update_rule=sum_rule, read_norm="output"),
    "sum_dpfp": partial(fast, update_rule=sum_rule, read_norm="output"),
    "unnormalised_sum": partial(fast, update_rule=sum_rule),
    "delta_dpfp": partial(fast, update_rule=delta_rule, key_norm="sum"),
    "delta_performer": partial(fast, feature_map=favor, update_rule=delta_rule, key_norm="sum"),
    "delta_output": partial(
        fast, update_rule=delta_rule, key_norm="sum", read_norm="output", output_scale=0.5
    ),
    "delta_full": partial(
        fast, feature_map=EluFeatureMap, update_rule=delta_rule, key_norm="sum", read_norm="full"
    ),
    "deltanet": partial(fast, update_rule=delta_rule, key_norm="l2", out_norm="rmsnorm"),
    "fwm": partial(fast, feature_map=TanhFeatureMap, update_rule=fwm_rule, out_norm="layernorm"),
}
every_memory = pytest.mark.parametrize("name", MEMORIES)


def make(name: str) -> Retriever:
    torch.manual_seed(0)
    memory = MEMORIES[name]
    return Retriever(n_keys=N_KEYS, n_values=N_VALUES, d_head=D_HEAD, memory=memory).double()


def associations(b: int = 3, t: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    keys = torch.randint(N_KEYS, (b, t), generator=random)
    return keys, torch.randint(N_VALUES, (b, t), generator=random)


@every_memory
def test_retriever_reads_one_query_as_one_of_many(name: str) -> None:
    """A single query is answered without forming the state: same numbers, same gradients."""
    model = make(name)
    keys, values = associations()
    queries = torch.arange(N_KEYS).expand(len(keys), -1)
    many = model(keys, values, queries)
    assert many.shape == (3, N_KEYS, N_VALUES)
    weights = torch.randn_like(many)
    from_many = torch.autograd.grad((many * weights).sum(), [*model.parameters()])
    one = torch.cat([model(keys, values, queries[:, n : n + 1]) for n in range(N_KEYS)], dim=1)
    torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)
    from_one = torch.autograd.grad((one * weights).sum(), [*model.parameters()])
    torch.testing.assert_close(from_one, from_many, rtol=1e-7, atol=1e-10)


@every_memory
def test_retriever_projects_the_concatenated_pair(name: str) -> None:
    model = make(name)
    keys, values = associations()
    pair = torch.cat([torch.eye(N_VALUES).double()[values], model.embedding(keys)], dim=-1)
    assert_same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    assert_same(model._of_pair(model.key, keys, values), model.key(pair))
    if model.beta is not None:
        assert_same(model._of_pair(model.beta, keys, values), model.beta(pair))


def test_retriever_state_dict_keys_are_pinned() -> None:
    keys = {"embedding.weight", "key.weight", "key.bias", "query.weight", "query.bias"}
    assert set(make("linear").state_dict()) == keys
    assert set(make("delta_dpfp").state_dict()) == {*keys, "beta.weight", "beta.bias"}


def test_retriever_has_the_references_sizes_and_initial_weights() -> None:
    model = Retriever(n_keys=100, memory=MEMORIES["linear"])
    assert model.key.weight.shape == (64, 100 + 220)
    bound = model.key.weight.abs().max().item()
    assert 0.12 < bound <= 0.125
    softmax = Retriever(n_keys=100, memory=KeyValues)
    assert softmax.query.weight.abs().max().item() <= (6 / (220 + 64)) ** 0.5


def test_retriever_of_impossible_size_is_refused() -> None:
    with pytest.raises(ValueError, match="n_keys=0"):
        Retriever(n_keys=0, memory=KeyValues)
