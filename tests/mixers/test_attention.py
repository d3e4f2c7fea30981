"""Properties every attention layer has, whatever its slots."""

from functools import partial

import jaxtyping
import pytest
import torch
from torch import Tensor

from fwlight.feature_maps import (
    DPFPFeatureMap,
    EluFeatureMap,
    FAVORFeatureMap,
    SiLUFeatureMap,
    TanhFeatureMap,
)
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.models.blocks import CrossDecoderBlock, EncoderBlock
from fwlight.models.retriever import Retriever
from fwlight.ops import delta_rule, fwm_rule, sum_rule

D_MODEL, HEADS, D_HEAD = 12, 3, 4
favor = partial(FAVORFeatureMap, D_HEAD, 6)


def fast(*, short_conv: int = 0, **slots) -> MultiHeadAttention:
    memory = partial(FastWeights, **slots)
    return MultiHeadAttention(D_MODEL, HEADS, D_HEAD, memory=memory, short_conv=short_conv)


softmax = partial(MultiHeadAttention, D_MODEL, HEADS, D_HEAD, memory=KeyValues)
VARIANTS = {
    "softmax": softmax,
    "softmax_conv": partial(softmax, short_conv=3),
    "linear": partial(fast, feature_map=EluFeatureMap, update_rule=sum_rule, read_norm="output"),
    "performer": partial(fast, feature_map=favor, update_rule=sum_rule, read_norm="output"),
    "delta_dpfp": partial(fast, feature_map=DPFPFeatureMap, update_rule=delta_rule, key_norm="sum"),
    "delta_performer": partial(fast, feature_map=favor, update_rule=delta_rule, key_norm="sum"),
    "delta_output": partial(
        fast,
        feature_map=EluFeatureMap,
        update_rule=delta_rule,
        key_norm="sum",
        read_norm="output",
    ),
    "delta_full": partial(
        fast, feature_map=EluFeatureMap, update_rule=delta_rule, key_norm="sum", read_norm="full"
    ),
    "fwm": partial(fast, feature_map=TanhFeatureMap, update_rule=fwm_rule, out_norm="layernorm"),
    "performer_conv": partial(
        fast, feature_map=favor, update_rule=sum_rule, read_norm="output", short_conv=2
    ),
    "deltanet": partial(
        fast,
        feature_map=SiLUFeatureMap,
        update_rule=delta_rule,
        key_norm="l2",
        out_norm="rmsnorm",
        beta_max=2.0,
        short_conv=4,
    ),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make(name: str):
    torch.manual_seed(0)
    return VARIANTS[name]().double().eval()


def leaves(state) -> list[Tensor]:
    """Every tensor of a state, whatever it consists of."""
    if isinstance(state, tuple):
        return [tensor for part in state for tensor in leaves(part)]
    return [] if state is None else [state]


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_variant
def test_perturbing_the_future_changes_nothing(name: str) -> None:
    layer, x = make(name), gaussian(2, 9, D_MODEL)
    y, _ = layer(x)
    x2 = x.clone()
    x2[:, 5:] += 1.0
    y2, _ = layer(x2)
    torch.testing.assert_close(y2[:, :5], y[:, :5], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(y2[:, 5:], y[:, 5:])


@every_variant
@pytest.mark.parametrize("sizes", [(4, 5), (1,) * 9])
def test_segments_with_carried_state_equal_the_whole(name: str, sizes: tuple[int, ...]) -> None:
    layer, x = make(name), gaussian(2, 9, D_MODEL)
    whole, final = layer(x)
    parts, state = [], None
    for segment in x.split(sizes, dim=1):
        y, state = layer(segment, initial_state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-12)
    for carried, expected in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(carried, expected, rtol=1e-9, atol=1e-12)


@every_variant
@pytest.mark.parametrize("causal", [True, False])
def test_padding_content_is_irrelevant(name: str, causal: bool) -> None:
    layer, x = make(name), gaussian(2, 9, D_MODEL)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :3] = padding[1, 4:6] = padding[1, 8] = True
    y, state = layer(x, causal=causal, padding_mask=padding)
    other = torch.where(padding[..., None], 7.0 * gaussian(2, 9, D_MODEL, seed=5), x)
    y2, state2 = layer(other, causal=causal, padding_mask=padding)
    torch.testing.assert_close(y2[~padding], y[~padding], rtol=1e-9, atol=1e-12)
    if "softmax" not in name:  # whose cache keeps the padding beside its mask
        for a, b in zip(leaves(state), leaves(state2), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@every_variant
def test_padded_sequence_equals_the_sequence_without_its_padding(name: str) -> None:
    layer, x = make(name), gaussian(1, 9, D_MODEL)
    padding = torch.tensor([[True, True, False, False, True, False, False, False, True]])
    y, _ = layer(x, padding_mask=padding)
    alone, _ = layer(x[~padding][None])
    torch.testing.assert_close(y[~padding], alone[0], rtol=1e-9, atol=1e-12)


@every_variant
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_padded_segments_carry_what_the_sequence_without_padding_does(name: str, cut: int) -> None:
    layer, x = make(name), gaussian(2, 9, D_MODEL)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :2] = padding[0, 6:] = padding[1, 3:5] = padding[1, 8] = True
    (start, end), (first, last) = x.split((cut, 9 - cut), 1), padding.split((cut, 9 - cut), 1)
    y, state = layer(start, padding_mask=first)
    y2, _ = layer(end, padding_mask=last, initial_state=state)
    y = torch.cat([y, y2], 1)
    for row in range(2):
        alone, _ = layer(x[row, ~padding[row]][None])
        torch.testing.assert_close(y[row, ~padding[row]], alone[0], rtol=1e-9, atol=1e-12)


@every_variant
def test_cross_attention_writes_once_and_reads_with_every_query(name: str) -> None:
    layer, x, source = make(name), gaussian(2, 5, D_MODEL), gaussian(2, 9, D_MODEL, seed=2)
    state = layer.write(source)
    y = layer.read(x, state)
    one_by_one = [layer.read(x[:, t : t + 1], state) for t in range(5)]
    torch.testing.assert_close(torch.cat(one_by_one, 1), y, rtol=1e-9, atol=1e-12)
    first = layer.write(source[:, :4])
    in_two = layer.read(x, layer.write(source[:, 4:], initial_state=first))
    torch.testing.assert_close(in_two, y, rtol=1e-9, atol=1e-12)
    itself, _ = layer(x, causal=False)
    as_source = layer.read(x, layer.write(x))
    if layer.short_conv is None:
        torch.testing.assert_close(itself, as_source, rtol=1e-9, atol=1e-12)
    else:  # the queries of another sequence are not convolved
        assert not torch.allclose(itself, as_source)


@every_variant
def test_last_causal_output_equals_non_causal_reading(name: str) -> None:
    layer, x = make(name), gaussian(2, 9, D_MODEL)
    causal, _ = layer(x)
    whole, _ = layer(x, causal=False)
    torch.testing.assert_close(causal[:, -1], whole[:, -1], rtol=1e-9, atol=1e-12)


@every_variant
def test_state_size_counts_what_is_carried(name: str) -> None:
    layer = make(name)
    _, state = layer(gaussian(1, 9, D_MODEL))
    if "softmax" in name:
        assert layer.state_size is None
        return
    memory = state if layer.short_conv is None else state.memory
    counted = sum(x.numel() for x in leaves((memory.weights, memory.key_sum)))
    assert layer.state_size == counted + (0 if memory is state else state.tail.numel())


@every_variant
def test_every_parameter_gets_a_gradient(name: str) -> None:
    layer = make(name)
    y, _ = layer(gaussian(2, 9, D_MODEL))
    (y * gaussian(2, 9, D_MODEL, seed=3)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@every_variant
def test_bfloat16_autocast_stays_close_and_keeps_the_state_in_float32(name: str) -> None:
    layer, x = make(name).float(), gaussian(2, 9, D_MODEL).float()
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x)
    assert y.dtype == torch.bfloat16
    if "softmax" not in name:
        memory = state if layer.short_conv is None else state.memory
        assert memory.weights.dtype == torch.float32
    # Inputs rounded to 8 bits; a norm over few values enlarges single errors.
    assert (y.float() - exact).norm() < 0.05 * exact.norm()


def test_zero_features_do_not_divide_by_zero() -> None:
    layer = make("delta_dpfp")
    x = torch.zeros(1, 4, D_MODEL, dtype=torch.float64, requires_grad=True)
    y, state = layer(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert grad.isfinite().all()
    assert (state.weights == 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"key_norm": "max"}, "key_norm='max' is none of none, sum, l2, l2_smooth"),
        ({"read_norm": "max"}, "read_norm='max'"),
        ({"out_norm": "max"}, "out_norm='max'"),
        ({"beta_max": 0.0}, "beta_max=0.0"),
        ({"read_norm": "full", "update_rule": sum_rule}, "read_norm='full'"),
        ({"short_conv": 1}, "short_conv=1"),
        ({"short_conv": -1}, "short_conv=-1"),
    ],
)
def test_attention_refuses_bad_options(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fast(**{"feature_map": EluFeatureMap, "update_rule": delta_rule} | kwargs)


def test_attention_refuses_sizes_below_one() -> None:
    with pytest.raises(ValueError, match="n_heads=0"):
        MultiHeadAttention(8, 0, 4, memory=KeyValues)


MADE = {"feature_map": EluFeatureMap(), "memory": KeyValues(D_HEAD), "attention": softmax()}
SIZES = {"d_model": D_MODEL, "n_heads": HEADS, "d_head": D_HEAD, "d_ff": 8, "dropout": 0.0}
TAKERS = {
    "feature_map": [partial(FastWeights, D_HEAD, update_rule=sum_rule)],
    "memory": [
        partial(MultiHeadAttention, D_MODEL, HEADS, D_HEAD),
        partial(Retriever, n_keys=5),
    ],
    "attention": [
        partial(DecoderLM, vocab_size=9, n_layers=2, **SIZES),
        partial(EncoderBlock, **SIZES),
    ],
    "cross": [
        partial(CrossDecoderBlock, attention=partial(MultiHeadAttention, memory=KeyValues), **SIZES)
    ],
}


@pytest.mark.parametrize(("name", "taker"), [(x, y) for x, ys in TAKERS.items() for y in ys])
def test_a_module_instead_of_what_makes_one_is_refused_in_one_line(name, taker):
    module = MADE.get(name, MADE["attention"])
    told = rf"{name} must be what makes one.*, not the module {type(module).__name__} itself$"
    with pytest.raises(ValueError, match=told):
        taker(**{name: module})


@pytest.mark.parametrize("rule", ["delta", (1, 2)])
def test_what_is_no_update_rule_is_refused_in_one_line(rule, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"a function like fwlight\.ops\.delta_rule, not a"):
        FastWeights(D_HEAD, feature_map=EluFeatureMap, update_rule=rule)
