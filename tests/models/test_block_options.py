"""Blocks of today: rotary positions, RMSNorm, normed queries and keys, small first residuals."""

import math
from functools import partial

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from cli.usage import block_parameters
from fwlight.errors import ConfigError
from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.mixers.normalisation import RMSNorm
from fwlight.mixers.rotary import rotated
from fwlight.models import DecoderLM
from fwlight.ops import delta_rule

MODERN = ("size=tiny", "size.dropout=0", "block=modern")
HYBRID = ("model=delta_dpfp", "model@alternate=softmax", "model.alternate_every=2")
MODELS = [("model=softmax",), ("model=softmax", "model.short_conv=4"), ("model=deltanet",), HYBRID]
IDS = ("softmax", "short_conv", "deltanet", "hybrid")


def network(*arguments: str, **sizes) -> DecoderLM:
    torch.manual_seed(0)
    config = compose_config(arguments).config
    return build("network", config["network"], **{"vocab_size": 30, **sizes})


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    places = torch.arange(5, 12, dtype=torch.float64)[:, None]
    angles = places * 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(()).double(), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(
        rotated(x, -x, first=5), (expected, -expected), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_products_depend_on_distance_alone(length: int) -> None:
    q, k = torch.randn(2, 1, 2, length, 16, dtype=torch.float64)
    both = (rotated(q, k, first=n) for n in (0, 100_000))
    near, far = (q @ k.mT for q, k in both)
    torch.testing.assert_close(near, far, rtol=1e-9, atol=1e-9)
    if length > 1:
        assert not torch.allclose(near, q @ k.mT)


def test_softmax_attention_with_rotary_positions_by_hand() -> None:
    layer = MultiHeadAttention(
        8, 2, 4, memory=KeyValues, positions="rotary", qk_norm="rmsnorm"
    ).double()
    with torch.no_grad():
        layer.q_norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 0.5]))
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    q, k, v = (layer.in_proj(x)[0].view(6, 3, 2, 4)[:, i] for i in range(3))
    q, k = (z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() for z in (q, k))
    q = q * layer.q_norm.weight
    o = torch.zeros(6, 2, 4, dtype=torch.float64)
    for t in range(6):
        for head in range(2):
            logits = []
            for s in range(t + 1):
                pairs = [(i, i + 2, (t - s) * 10_000.0 ** (-2 * i / 4)) for i in range(2)]
                # Re of q e^{i t w} times the conjugate of k e^{i s w}
                logit = sum(
                    (q[t, head, a] * k[s, head, a] + q[t, head, b] * k[s, head, b]) * math.cos(w)
                    + (q[t, head, a] * k[s, head, b] - q[t, head, b] * k[s, head, a]) * math.sin(w)
                    for a, b, w in pairs
                )
                logits.append(logit / 2)
            o[t, head] = torch.stack(logits).softmax(0) @ v[: t + 1, head]
    expected = layer.out_proj(o.flatten(1))
    torch.testing.assert_close(layer(x)[0][0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arguments", MODELS, ids=IDS)
def test_decoding_equals_the_parallel_pass(arguments: tuple[str, ...]) -> None:
    model = network(*MODERN, *arguments).double().eval()
    tokens = torch.randint(30, (2, 65))
    whole, _ = model(tokens)
    state, parts = None, []
    for piece in (tokens[:, :40], *tokens[:, 40:].split(1, dim=1)):
        logits, state = model(piece, initial_state=state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arguments", MODELS, ids=IDS)
def test_packed_documents_are_those_alone(arguments: tuple[str, ...]) -> None:
    model = network(*MODERN, *arguments).double().eval()
    tokens, starts = torch.randint(30, (1, 20)), torch.zeros(1, 20, dtype=torch.bool)
    starts[0, [0, 7]] = True
    packed, _ = model.features(tokens, starts=starts)
    alone = [model.features(piece)[0] for piece in (tokens[:, :7], tokens[:, 7:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)


def test_translation_has_the_blocks_too() -> None:
    arguments = ("task=translation", *MODERN, "model=softmax")
    model = network(*arguments, pad_id=0).double().eval()
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    source, inputs = torch.randint(1, 30, (2, 9)), torch.randint(1, 30, (2, 5))
    padded = torch.nn.functional.pad(source, (0, 4))
    torch.testing.assert_close(model(padded, inputs), model(source, inputs), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model(source.flip(1), inputs), model(source, inputs))


def test_modern_blocks_hold_what_they_say() -> None:
    model = network(*MODERN, "model=softmax", "size.n_layers=8", "size.d_model=256")
    kinds = {type(module) for module in model.modules()}
    assert RMSNorm in kinds
    assert torch.nn.LayerNorm not in kinds
    assert model.positions is None
    assert model.output.weight is model.embedding.weight
    (block, *_) = model.blocks
    for projection in (block.attention.out_proj, block.feed_forward[3]):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.attention.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    others = network(*MODERN, *HYBRID)
    assert isinstance(others.blocks[1].attention.q_norm, torch.nn.RMSNorm)
    assert others.blocks[1].attention.rotary
    assert not others.blocks[0].attention.rotary


def test_untied_output_has_weights_of_its_own() -> None:
    tied, untied = (network("size=tiny", f"model.untied_output={x}") for x in ("false", "true"))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 30 * 32
    chunked = network("size=tiny", "model.untied_output=true", "model.output=chunked")
    assert chunked.output.weight is not chunked.embedding.weight
    with pytest.raises(ConfigError, match="untied_output needs output=dense or chunked"):
        network("model.untied_output=true", "model.output=adaptive", "model.cutoffs=[10]")


def test_rotary_positions_are_of_softmax_attention_with_pairs() -> None:
    memory = partial(FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule)
    for d_head, kind in ((4, memory), (3, KeyValues)):
        with pytest.raises(ValueError, match="positions=rotary is for softmax attention"):
            MultiHeadAttention(8, 2, d_head, memory=kind, positions="rotary")


def test_blocks_are_presets_of_model_keys_after_those_of_the_task() -> None:
    default, paper = (compose_config(x).config["model"] for x in ([], ["block=paper"]))
    assert paper == default
    translation = compose_config(["task=translation"]).config["model"]
    assert translation["norm"] == "pre"
    assert compose_config(["task=translation", "block=paper"]).config["model"]["norm"] == "post"
    chosen = ["block=modern", "model.feed_forward=gelu", "model.untied_output=true"]
    modern = compose_config(chosen).config["model"]
    expected = {"block_norm": "rmsnorm", "positions": "rotary", "feed_forward": "gelu"}
    assert expected.items() <= modern.items()
    assert modern["untied_output"] is True


def test_sizes_have_the_parameters_that_the_help_says() -> None:
    counted = block_parameters()
    assert {"tiny", "demo", "small", "medium", "gpt2"} <= counted.keys()
    for size, number in counted.items():
        config = compose_config([f"size={size}", "model=softmax"]).config
        with torch.device("meta"):
            model = build("network", config["network"], vocab_size=30)
        assert sum(p.numel() for p in model.blocks.parameters()) == number, size
