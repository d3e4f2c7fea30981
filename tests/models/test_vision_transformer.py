"""Classifiers of images: every model's mixer in one, both directions, the baselines."""

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.errors import ConfigError
from fwlight.mixers import FastWeights, TwoDirections
from fwlight.models import ConvNet

SIZES = ["size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=16"]
RECURRENT = ("delta_rnn", "delta_lstm", "delta_mlp", "delta_delta", "recurrent_delta")
IN_ORDER = (*RECURRENT, "srwm", "lstm", "fwm_lstm", "fwm_lstm_lm", "fwm_lstm_meta_rl")
"""Models that see no later tokens."""


def network(*arguments: str, shape=(3, 4, 8)) -> torch.nn.Module:
    torch.manual_seed(0)
    config = compose_config(["task=image", *SIZES, *arguments]).config["network"]
    return build("network", config, n_classes=5, shape=shape).double()


def images(n: int = 3, *, shape=(3, 4, 8)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator, dtype=torch.float64)


CASES = {f"{model} two": [f"model={model}", "model.directions=two"] for model in groups()["model"]}
CASES |= {model: [f"model={model}"] for model in groups()["model"] if model not in IN_ORDER}
CASES |= {
    "token": ["model.pool=token"],
    "token two": ["model.pool=token", "model.directions=two"],
    "hybrid": ["model@alternate=softmax", "model.alternate_every=2"],
    "cnn": ["network=cnn"],
    "mlp": ["network=mlp"],
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_classes_depend_on_every_patch_of_the_image_alone(arguments):
    made = network(*arguments)
    x = images().requires_grad_()
    logits = made(x)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(made(x[1:2]), logits[1:2], rtol=1e-9, atol=1e-11)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), x, retain_graph=True)
    assert (gradient[0].abs().amax(0) > 0).all()
    assert not gradient[1:].any()
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    for name, parameter in made.named_parameters():
        if name.endswith("memory.skip") and "model.directions=two" not in arguments:
            continue  # a read of another time than the write has no value of its own
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_patches_know_their_row_and_column():
    made = network("model=softmax")
    x = images(1)
    for moved in (x.roll(2, -1), x.roll(2, -2), x.transpose(-1, -2).reshape(x.shape)):
        assert not torch.allclose(made(moved), made(x))
    blind = network("model=softmax", "model.positions=none")
    torch.testing.assert_close(blind(x.roll(2, -1)), blind(x))
    places = made._places(torch.device("cpu")).view(2, 4, 2, 8)  # rows, columns, halves
    assert torch.equal(places[:, 0, 0], places[:, 3, 0])
    assert torch.equal(places[0, :, 1], places[1, :, 1])


def test_two_directions_are_a_mixer_and_its_mirror():
    attention = network("model=delta_dpfp", "model.directions=two").blocks[0].attention
    assert isinstance(attention, TwoDirections)
    assert isinstance(attention.forwards.memory, FastWeights)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    y, state = attention(x, causal=False)
    assert state is None
    expected = torch.stack(
        [
            attention.forwards(x[:, : t + 1])[0][:, -1]
            + attention.backwards(x[:, t:].flip(1))[0][:, -1]
            for t in range(7)
        ],
        dim=1,
    )
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = padding[1, 2] = True
    padded, _ = attention(x, causal=False, padding_mask=padding)
    alone, _ = attention(x[1, ~padding[1]][None], causal=False)
    torch.testing.assert_close(padded[1, ~padding[1]], alone[0], rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="cannot be causal"):
        attention(x)
    whole = network("model=delta_dpfp").blocks[0].attention
    counts = [sum(p.numel() for p in each.parameters()) for each in (attention, whole)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.patch_size=3"], "patch_size=3 does not divide the images' 4 x 8"),
        (["model=lstm"], "LSTM sees no later patches; model.directions=two"),
        (["model.directions=two", "size.n_heads=1"], "n_heads=1 must be even"),
        (["model.positions=sinusoidal_reversed"], "positions='sinusoidal_reversed' is none of"),
        (["size.d_model=18"], "d_model=18 must be a multiple of 4"),
        (["network=cnn", "size.d_model=18"], "d_model=18 must be a multiple of 8"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        network(*arguments)


def test_only_images_have_a_choice_of_networks():
    with pytest.raises(ConfigError, match="network=cnn: task=lm has one network"):
        compose_config(["network=cnn"])
    assert isinstance(network("network=cnn"), ConvNet)
