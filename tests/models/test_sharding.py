"""Models whose parameters are shared out over processes, or that are built without memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.building import build
from cli.composition import compose_config

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=24"]
MODELS = ("softmax", "linear", "performer", "sum_dpfp", "delta_dpfp", "deltanet", "fwm", "retnet")


@pytest.mark.slow
def test_two_processes_that_share_all_parameters_train_as_one(tmp_path, free_port) -> None:
    command = [sys.executable, "-m", "tests.models.sharded", str(free_port), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["mine"] < 0.6 * found["all"]
        for (loss, gradients), (expected_loss, expected) in zip(
            found["sharded"], found["alone"], strict=True
        ):
            torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
            assert list(gradients) == list(expected)
            for name, wanted in expected.items():
                torch.testing.assert_close(gradients[name], wanted, rtol=1e-6, atol=1e-12)


def network(task: str, model: str, *overrides: str):
    arguments = [f"task={task}", f"model={model}", *SIZES, *overrides]
    config = compose_config(arguments).config["network"]
    sizes = {"lm": {"vocab_size": 13}, "translation": {"vocab_size": 13, "pad_id": 0}}[task]
    return build("network", config, **sizes).eval()


def answer(task: str, model) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(1)
    tokens = torch.randint(1, 13, (3, 9), generator=generator, device="cpu")
    tokens = tokens.to(next(model.parameters()).device)
    found = model(tokens) if task == "lm" else model(tokens, tokens)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("task", ["lm", "translation"])
@pytest.mark.parametrize("model", MODELS)
def test_model_built_on_the_meta_device_takes_its_weights_later(task, model) -> None:
    with torch.no_grad():
        built = network(task, model)
        with torch.device("meta"):
            empty = network(task, model)
        assert all(x.is_meta for x in empty.parameters())
        empty.load_state_dict(built.state_dict(), assign=True)
        assert not any(x.is_meta for x in (*empty.parameters(), *empty.buffers()))
        torch.testing.assert_close(answer(task, empty), answer(task, built), rtol=0, atol=0)


@pytest.mark.parametrize("place", ["built there", "moved there"])
@pytest.mark.parametrize("task", ["lm", "translation"])
@pytest.mark.parametrize("model", [*MODELS, "performer redrawn"])
def test_model_on_the_meta_device_tells_shapes(task, model, place) -> None:
    name, *redrawn = model.split()
    overrides = ["model.feature_map.redraw=training"] if redrawn else []
    with torch.device("meta" if place == "built there" else "cpu"):
        empty = network(task, name, *overrides).train()
    empty = empty.to("meta")
    logits = answer(task, empty)
    logits.sum().backward()
    assert logits.shape == (3, 9, 13)
    assert all(p.grad.shape == p.shape for p in empty.parameters() if p.requires_grad)


@pytest.mark.parametrize("model", [x for x in MODELS if x != "softmax"])
def test_gradients_of_single_sequences_come_from_vmap_with_the_recurrent_back_end(model) -> None:
    net = network("lm", model, "model.update_rule.backend=recurrent").double()
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    tokens = torch.randint(13, (3, 9), generator=torch.Generator().manual_seed(1))

    def loss(parameters, row):
        made = torch.func.functional_call(net, (parameters, buffers), (row[None],))
        return made[0].square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens)
    wanted = torch.autograd.grad(loss(parameters, tokens[1]), list(parameters.values()))
    for gradients, expected in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(gradients[1], expected, rtol=1e-9, atol=1e-12)
