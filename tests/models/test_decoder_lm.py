from functools import partial

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap, FAVORFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM, generate
from fwlight.models.blocks import FeedForward
from fwlight.ops import delta_rule, sum_rule
from fwlight.types import IGNORE_INDEX

MEMORY = {
    "softmax": KeyValues,
    "performer": partial(
        FastWeights,
        feature_map=partial(FAVORFeatureMap, 4, 6),
        update_rule=sum_rule,
        read_norm="output",
    ),
    "delta": partial(
        FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule, key_norm="sum"
    ),
}
ATTENTION = {name: partial(MultiHeadAttention, memory=memory) for name, memory in MEMORY.items()}
ATTENTION |= {
    f"{name}_conv": partial(MultiHeadAttention, memory=MEMORY[name], short_conv=4)
    for name in ("softmax", "delta")
}
every_attention = pytest.mark.parametrize("attention", ATTENTION)


def make(attention: str = "delta", **changes) -> DecoderLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_ff": 16}
    options = sizes | {"dropout": 0.0, "attention": ATTENTION[attention]} | changes
    return DecoderLM(**options).double().eval()


def tokens(b: int = 2, t: int = 9) -> torch.Tensor:
    return torch.randint(11, (b, t), generator=torch.Generator().manual_seed(1))


@every_attention
@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_step_by_step_equals_parallel(attention: str, positions: str, norm: str) -> None:
    model, x = make(attention, positions=positions, norm=norm), tokens()
    whole, _ = model(x)
    steps, state = [], None
    for t in range(x.shape[1]):
        logits, state = model(x[:, t : t + 1], initial_state=state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-12)
    assert state.position == x.shape[1]


@every_attention
def test_future_tokens_change_nothing(attention: str) -> None:
    model, x = make(attention), tokens()
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    torch.testing.assert_close(model(other)[0][:, :5], model(x)[0][:, :5], rtol=1e-9, atol=1e-12)


def test_nll_is_that_of_the_logits_and_ignores_what_is_marked() -> None:
    model, x, targets = make(), tokens(), tokens().flip(1)
    targets[0, 3] = IGNORE_INDEX
    nll = model.nll(model.features(x)[0], targets)
    p = model(x)[0].softmax(-1)
    for b in range(2):
        for t in range(9):
            ignored = (b, t) == (0, 3)
            expected = 0.0 if ignored else -p[b, t, targets[b, t]].log().item()
            assert nll[b, t].item() == pytest.approx(expected, rel=1e-6)


def test_embedding_is_tied_and_layers_share_nothing_else() -> None:
    model = make("performer")
    assert model.output.weight is model.embedding.weight
    first, second = (
        {t.data_ptr() for t in [*block.parameters(), *block.buffers()]} for block in model.blocks
    )
    assert not first & second


def test_positions_count_up_or_down() -> None:
    up, down = make().positions, make(positions="sinusoidal_reversed").positions
    torch.testing.assert_close(down(5), up(5).flip(0))
    torch.testing.assert_close(up(2, start=3), up(5)[3:])
    torch.testing.assert_close(up(5)[3, 0], torch.tensor(3.0, dtype=torch.float64).sin())
    torch.testing.assert_close(up(5)[3, 4], torch.tensor(3.0, dtype=torch.float64).cos())


def test_reversed_positions_refuse_incremental_decoding() -> None:
    model = make(positions="sinusoidal_reversed")
    _, state = model(tokens())
    with pytest.raises(ValueError, match="sinusoidal_reversed"):
        model(tokens(), initial_state=state)


@pytest.mark.parametrize("attention", ["performer", "delta", "delta_conv"])
def test_state_size_is_constant_and_counted(attention: str) -> None:
    model = make(attention)
    for length in (1, 9):
        _, state = model(tokens(1, length))
        carried = 0
        for layer in state.layers:
            memory, tail = layer if attention.endswith("conv") else (layer, None)
            parts = (memory.weights, memory.key_sum, tail)
            carried += sum(x.numel() for x in parts if x is not None)
        assert carried == model.state_size
    assert make("softmax").state_size is None


@every_attention
def test_greedy_generation_equals_rereading_everything(attention: str) -> None:
    model, prompt = make(attention), tokens(2, 3)
    out = generate(model, prompt, max_new_tokens=6, temperature=0.0)
    x = prompt
    for _ in range(6):
        x = torch.cat([x, model(x)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, x)


def test_sampling_repeats_with_its_generator_and_leaves_the_global_one_alone() -> None:
    model, prompt = make().train(), tokens(1, 3)
    before = torch.get_rng_state()
    first, second = (
        generate(model, prompt, max_new_tokens=8, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_top_k_one_and_small_top_p_are_greedy() -> None:
    model, prompt = make(), tokens(2, 3)
    greedy = generate(model, prompt, max_new_tokens=5, temperature=0.0)
    assert torch.equal(generate(model, prompt, max_new_tokens=5, top_k=1), greedy)
    assert torch.equal(generate(model, prompt, max_new_tokens=5, top_p=1e-6), greedy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(positions="learned"), "positions='learned'"),
        (lambda: make(norm="sandwich"), "norm='sandwich'"),
        (lambda: make(output="sparse"), "output='sparse'"),
        (lambda: generate(make(), tokens(1, 2), max_new_tokens=1, temperature=1e-38), "1e-38"),
        (lambda: generate(make(), tokens(1, 2), max_new_tokens=1, top_p=1e-50), "1e-50"),
        (lambda: make(output="adaptive"), r"cutoffs=\[\] must rise"),
        (lambda: make(n_layers=0), "n_layers=0"),
        (lambda: make(d_model=7), "d_model=7 must be even"),
        (lambda: generate(make(), tokens(1, 0), max_new_tokens=3), "prompt_length=0"),
        (lambda: generate(make(), tokens(), max_new_tokens=3, top_p=0.0), "top_p=0.0"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_state_dict_keys_are_pinned() -> None:
    """Old checkpoints keep loading: these names may gain company, never change."""
    expected = {
        "embedding.weight",
        "output.weight",
        "output.bias",
        *(
            f"blocks.{i}.{name}"
            for i in range(2)
            for name in (
                "attention.in_proj.weight",
                "attention.out_proj.weight",
                "attention_norm.weight",
                "attention_norm.bias",
                "feed_forward.0.weight",
                "feed_forward.0.bias",
                "feed_forward.3.weight",
                "feed_forward.3.bias",
                "feed_forward_norm.weight",
                "feed_forward_norm.bias",
            )
        ),
    }
    favor = {f"attention.memory.feature_map.{name}" for name in ("seed", "draws", "projection")}
    assert set(make("softmax").state_dict()) == expected
    assert set(make("delta").state_dict()) == expected
    assert set(make("delta_conv").state_dict()) == expected | {
        f"blocks.{i}.attention.short_conv.weight" for i in range(2)
    }
    clusters = {f"output.clusters.{name}" for name in ("weight", "bias")}
    assert set(make("delta", output="adaptive", cutoffs=[4]).state_dict()) == expected | clusters
    assert set(make("performer").state_dict()) == expected | {
        f"blocks.{i}.{name}" for i in range(2) for name in favor
    }


@pytest.mark.parametrize("kind", ["relu", "gelu", "swiglu"])
def test_feed_forward_kinds_are_their_formulas(kind):
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10, 0.0, kind=kind).double(), torch.randn(3, 6, dtype=torch.float64)
    first, second = layer[0], layer[3]
    if kind == "swiglu":
        a, b = (x @ first.weight.T).split(10, dim=-1)
        inner = a * torch.sigmoid(a) * b
        assert first.bias is None
        expected = inner @ second.weight.T
    else:
        inner = x @ first.weight.T + first.bias
        cdf = 0.5 * (1 + torch.erf(inner / 2**0.5)) if kind == "gelu" else (inner > 0)
        expected = (inner * cdf) @ second.weight.T + second.bias
    torch.testing.assert_close(layer(x), expected)


def test_unknown_feed_forward_is_refused():
    with pytest.raises(ValueError, match="feed_forward"):
        FeedForward(6, 10, 0.0, kind="silu")
