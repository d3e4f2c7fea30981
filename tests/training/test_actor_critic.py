"""Agents with memories: the loss against the paper's formulas, and runs from the command line."""

import json
from functools import partial

import pytest
import torch
from torch.distributions import Categorical

from cli.building import build, build_parts
from cli.composition import compose_config
from fwlight.mixers import MultiHeadAttention
from fwlight.models import ActorCritic
from fwlight.run import load_checkpoint
from fwlight.training.actor_critic import interpolated
from train import main

SMALL = [
    *("experiment=graph_pomdp", "task.n_graphs=6", "task.batch_size=6", "size.d_model=8"),
    *("size.d_head=4", "task.environment.episode_length=7", "trainer.log_every_n_steps=1"),
    *("logger=none", "callbacks=none", "trainer.max_steps=6", "trainer.val_check_interval=2"),
]


def small(*arguments):
    config = compose_config([*SMALL, "trainer.precision=64-true", *arguments]).config
    module, data = build_parts(config)
    return module, data.training_batch(0)


def step_by_step(module, batch, *, entropy):
    """The loss of the paper, with the gradient through every step's state."""
    world, state, total = module.environment, None, torch.zeros((), dtype=torch.float64)
    places = world.reset(batch.worlds, batch.draws[:, 0])
    steps, gained = [], []
    for t in range(batch.choices.shape[1]):
        x = world.observe(places).double()[:, None]
        logits, values, state = module.network(x, initial_state=state)
        policy = Categorical(logits[:, 0].softmax(-1) + 1e-8)
        actions = (policy.probs.cumsum(-1) <= batch.choices[:, t, None]).sum(-1)
        places, rewards = world.step(places, actions, batch.draws[:, t + 1])
        bonus = {"shannon": policy.entropy(), "simpson": 1 - policy.probs.square().sum(-1)}
        steps.append((policy.log_prob(actions), values[:, 0], bonus[entropy]))
        gained.append(rewards)
    returned = torch.zeros(len(batch.worlds))
    for (chosen, value, bonus), rewards in zip(steps[::-1], gained[::-1], strict=True):
        returned = rewards + 0.9 * returned
        better = returned - value
        total = total - 0.03 * bonus.mean() + 0.1 * better.square().mean()
        total = total - (chosen * better.detach()).mean()
    return total / len(steps), torch.stack(gained, 1)


@pytest.mark.parametrize(
    ("row", "entropy"), [("fwm", "shannon"), ("fwm", "simpson"), ("lstm", "shannon")]
)
def test_loss_and_gradient_are_those_of_steps_one_by_one(row, entropy):
    module, batch = small(f"row={row}", f"loss.entropy={entropy}", "size.d_model=8")
    loss, rewards = step_by_step(module, batch, entropy=entropy)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    played = module.play(batch)
    assert torch.equal(played.rewards, rewards)
    found = module.losses(played).mean()
    torch.testing.assert_close(found, loss, rtol=1e-7, atol=0)  # rewards are float32
    for one, other in zip(
        torch.autograd.grad(found, list(module.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_agents_have_the_published_parameters():
    for row, count in (("fwm", 10_933), ("lstm", 1_089_540)):
        config = compose_config(["experiment=graph_pomdp", f"row={row}"]).config
        with torch.device("meta"):
            network = build("network", config["network"], n_inputs=17, n_actions=3)
        assert sum(p.numel() for p in network.parameters()) == count


def test_other_mixers_see_inputs_through_a_linear_map():
    attention = partial(MultiHeadAttention, memory=_delta())
    network = ActorCritic(
        n_inputs=5, n_actions=3, d_model=8, n_layers=2, n_heads=2, d_head=4, d_ff=8,
        dropout=0.0, attention=attention,
    )  # fmt: skip
    x = torch.randn(2, 4, 5)
    logits, values, _ = network(x)
    assert logits.shape == (2, 4, 3)
    state, steps = None, []
    for t in range(4):
        _, value, state = network(x[:, t : t + 1], initial_state=state)
        steps.append(value)
    torch.testing.assert_close(torch.cat(steps, 1), values)


def _delta():
    from fwlight.feature_maps import IdentityFeatureMap
    from fwlight.mixers import FastWeights
    from fwlight.ops import delta_rule

    return partial(FastWeights, feature_map=IdentityFeatureMap, update_rule=delta_rule)


def curve(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    wanted = ("train/loss", "train/reward", "train/grad_norm", "val/", "test/", "published")
    return [line for line in lines if line.split(",")[1].startswith(wanted)]


def test_agents_train_and_go_on_exactly(tmp_path, capsys):
    whole = tmp_path / "whole"
    kept = "callbacks.checkpoint.keep_every_n_train_steps=3"
    assert main([*SMALL, "row=fwm", kept, "callbacks=projection", f"run_dir={whole}"]) == 0
    summary = json.loads((whole / "summary.json").read_text())
    assert {"val/reward", "test/reward", "val/best_reward"} <= summary.keys()
    logged = {line.split(",")[1] for line in (whole / "metrics.csv").read_text().splitlines()}
    assert {"published_fwm/reward", "projection/layer0/shrunk"} <= logged
    first = whole / "checkpoints" / "step-000003.ckpt"
    assert load_checkpoint(first)["global_step"] == 3
    again = tmp_path / "again"
    assert main([*SMALL, "row=fwm", f"run_dir={again}", f"resume={first}"]) == 0
    later = [line for line in curve(whole) if int(line.split(",")[0]) > 3]
    assert curve(again)[-len(later) :] == later

    ckpt = f"ckpt={whole / 'checkpoints' / 'last.ckpt'}"
    capsys.readouterr()
    assert main(["action=diagnose", ckpt, "diagnostics.capacity_draws=1"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("layer0: ")
    assert line.endswith("of writes shrunk")
    assert "norm projection shrinks" in (whole / "diagnosis.html").read_text()
    assert main(["action=test", ckpt]) == 0


def test_published_curves_are_linear_between_their_points():
    points = [[0, 45.0], [10, 50.0], [30, 90.0]]
    assert [interpolated(points, step) for step in (0, 5, 20, 30, 31)] == [45, 47.5, 70, 90, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=softmax"], "memory of constant size"),
        (["row=fwm", "task.environment.n_islands=2"], "must be at least 3"),
        (["row=fwm", "loss.entropy=x"], "shannon, simpson"),
        (["row=gru"], "fwm, lstm"),
        (["row=fwm", "callbacks.checkpoint.monitor=val/loss"], "val/reward"),
        (["row=fwm", "task.environment.reset_timers=true"], "reset_timer"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main([*SMALL, *arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
