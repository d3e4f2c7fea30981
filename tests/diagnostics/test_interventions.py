"""What changes of a memory do to the loss, where the answer is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cli.building import build
from cli.composition import compose_config
from fwlight.diagnostics import Written, best_errors, cluster_keys
from fwlight.diagnostics.changes import Call, changes
from fwlight.diagnostics.interventions import _mean_and_error, intervene
from fwlight.diagnostics.layers import Layer, memory_layers
from fwlight.diagnostics.replacements import (
    latest,
    linear_reads,
    nearest_reads,
    reads_without,
    softmax_reads,
)
from fwlight.feature_maps import IdentityFeatureMap
from fwlight.mixers import FastWeights, Gates
from fwlight.ops import delta_rule, sum_rule
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, LMBatch, PackedBatch


def make_module(*arguments):
    torch.manual_seed(0)
    config = compose_config(["size=tiny", *arguments]).config
    network = build("network", config["network"], vocab_size=30).double()
    return LanguageModelingModule(network, optimizer=OptimizerConfig(), max_steps=1).eval()


def make_batch(b=3, t=9, *, documents=False):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(30, (b, t + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[0, 4:] = IGNORE_INDEX
    if not documents:
        return LMBatch(tokens[:, :-1], targets)
    starts = torch.zeros(b, t, dtype=torch.bool)
    starts[:, 5] = True
    return PackedBatch(tokens[:, :-1], targets, starts)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def called(rule, k, v, beta, q=None, **options):
    """Return a memory with the identity for its map, and how it was called."""
    memory = FastWeights(
        k.shape[-1], d_value=v.shape[-1], n_heads=k.shape[1],
        feature_map=IdentityFeatureMap, update_rule=rule, **options,
    )  # fmt: skip
    gates = Gates(beta)
    output, state = memory(k if q is None else q, k, v, gates)
    return Layer("layer0", memory, k.shape[1]), Call(
        k if q is None else q, k, v, gates, None, output, state
    )


def outputs(layer, call):
    """Return what the memory returns after every change."""
    return {
        f"{name}{f'/{x}' if x else ''}": y().double()
        for name, options in changes(layer, call)
        for x, y in options.items()
    }


@pytest.mark.parametrize("model", ["delta_dpfp", "gated_deltanet", "linear", "softmax", "fwm"])
@pytest.mark.parametrize("documents", [False, True])
def test_a_memory_whose_reads_nothing_uses_is_worth_nothing(model, documents):
    module = make_module(f"model={model}")
    layers = memory_layers(module.network)
    first = module.network.blocks[0].attention
    nn.init.zeros_(first.out_proj.weight)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    found = intervene(module, [make_batch(documents=documents)])
    assert [x.layer.name for x in found] == ["layer0", "layer1"]
    assert {x for y in found[0].whole.values() for x in y} == {0.0}
    assert found[1].whole["mean"][0] != 0
    names = {"mean", "empty_1", "empty_2", "empty_4", "empty_8"}
    if model != "softmax":
        names |= {"no_superseded", "last_4", "linear", "nearest", "softmax"}
    if model in ("delta_dpfp", "gated_deltanet", "fwm"):
        names |= {"beta_0.5", "beta_1", "beta_2", "g_1"}
    assert set(found[0].whole) == names
    # Nothing is left of it.
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert not any("forward" in vars(layer.memory) for layer in layers)
    assert not any("observer" in vars(layer.memory) for layer in layers)


@pytest.mark.parametrize("model", ["delta_dpfp", "deltanet", "mamba2", "linear", "softmax"])
def test_what_changes_nothing_costs_nothing(model):
    """To be emptied before the first token alone, to lose no write: the memory as it is."""
    module, batch = make_module(f"model={model}"), make_batch()
    layers = memory_layers(module.network)
    (effects, _) = intervene(module, [batch], heads=False)
    assert effects.heads == [{}] * layers[0].n_heads
    seen = []
    own = layers[0].memory.forward
    layers[0].memory.forward = lambda *x, **y: seen.append((x, y)) or own(*x, **y)
    module(batch)
    del layers[0].memory.forward
    ((args, options),) = seen
    output, state = layers[0].memory(*args, **options)
    found = outputs(layers[0], Call(*args, options.get("starts"), output, state))
    with torch.no_grad():
        whole = {**found, "empty_9": layers[0].memory(*args)[0]}
    torch.testing.assert_close(whole["empty_9"], output, rtol=1e-9, atol=1e-12)
    assert (whole["empty_8"] - output)[:, :, :8].abs().max() < 1e-12
    assert (whole["mean"] - output.mean((0, 2), keepdim=True)).abs().max() < 1e-12
    if model != "softmax":
        assert (whole["last_4"] - output)[:, :, :4].abs().max() < 1e-6


def test_effects_are_differences_of_mean_losses_with_the_error_of_a_ratio():
    module, batch = make_module("model=delta_dpfp"), make_batch()
    layer = memory_layers(module.network)[0]
    effects = intervene(module, [batch])[0]
    own = layer.memory.forward

    def averaged(q, k, v, gates, **options):
        output, state = own(q, k, v, gates, **options)
        mean = output.mean((0, 2), keepdim=True).expand_as(output)
        return torch.cat([output[:, :1], mean[:, 1:]], 1), state  # of the second head alone

    before = module(batch)
    layer.memory.forward = averaged
    d = (module(batch) - before).sum(1).detach()
    del layer.memory.forward
    n = (batch.targets != IGNORE_INDEX).sum(1).double()
    mean = d.sum() / n.sum()
    error = ((d - mean * n).square().sum() * 3 / 2).sqrt() / n.sum()
    assert effects.heads[1]["mean"] == pytest.approx((mean.item(), error.item()), rel=1e-9)
    # Batches add up, and one sequence, which has no error, says nothing.
    parts = [LMBatch(*(x[rows] for x in batch)) for rows in (slice(0, 2), slice(2, 3))]
    beta = effects.whole["beta_0.5"]
    assert intervene(module, parts)[0].whole["beta_0.5"] == pytest.approx(beta, rel=1e-9)
    assert intervene(module, parts[1:]) == []


def test_a_memory_that_only_knows_the_last_token_is_flat():
    """Keys at right angles, each read by its own query: the past does not matter."""
    k, v = torch.eye(8, dtype=torch.float64).expand(2, 1, 8, 8), draw(2, 1, 8, 3)
    layer, call = called(delta_rule, k, v, torch.ones(2, 1, 8, dtype=torch.float64))
    found = outputs(layer, call)
    for name in ("empty_1", "empty_2", "empty_4", "no_superseded", "last_4", "g_1", "nearest"):
        torch.testing.assert_close(found[name], v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["linear/1e-06"], v, rtol=1e-5, atol=1e-5)
    assert (found["mean"] - v).abs().max() > 0.1


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rule", [delta_rule, sum_rule])
def test_forced_strengths_on_one_hot_keys_leave_one_minus_beta(rule, strength):
    k, v = torch.eye(6, dtype=torch.float64).expand(1, 2, 6, 6), draw(1, 2, 6, 4)
    beta = torch.full((1, 2, 6), 0.3, dtype=torch.float64)
    layer, call = called(rule, k, v, beta, **({"out_norm": "none"}))
    found = outputs(layer, call)[f"beta_{strength:g}"]
    torch.testing.assert_close(v - found, (1 - strength) * v, rtol=1e-9, atol=1e-12)


def test_superseded_writes_of_a_sum_are_removed_exactly():
    """A key written again reads the mean of nothing but what was written last."""
    ids = torch.tensor([[0, 1, 0, 2, 1, 0]])
    k = torch.eye(3, dtype=torch.float64)[ids][:, None]
    v = draw(1, 1, 6, 4)
    for read_norm in ("none", "output"):
        layer, call = called(sum_rule, k, v, None, read_norm=read_norm, read_eps=0.0)
        found = outputs(layer, call)["no_superseded"]
        torch.testing.assert_close(found, v, rtol=1e-9, atol=1e-9)
        if read_norm == "none":
            expected = torch.stack(
                [
                    v[0, 0, [s for s in range(t + 1) if ids[0, s] == ids[0, t]]].sum(0)
                    for t in range(6)
                ]
            )
            torch.testing.assert_close(call.output[0, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [delta_rule, sum_rule])
def test_removed_writes_are_those_of_a_memory_that_never_saw_them(rule):
    k, v, q = draw(2, 2, 7, 4), draw(2, 2, 7, 3, seed=1), draw(2, 2, 7, 4, seed=2)
    k = k / k.norm(dim=-1, keepdim=True)
    beta, decay = torch.rand(2, 2, 7).double(), -torch.rand(2, 2, 7).double()
    decay[0, :, 3] = -torch.inf  # another document begins
    places = torch.arange(7)
    seen = (places <= places[:, None]).expand(2, -1, -1).clone()
    seen[0, 3:, :3] = False
    kept = seen[:, None] & (torch.rand(2, 2, 7, 7) < 0.6)
    w = Written(k, v, beta, rule, {"decay": decay})
    found = reads_without(w, q, kept)
    for b, h, t in ((0, 0, 2), (0, 1, 6), (1, 0, 6), (1, 1, 4)):
        S = torch.zeros(4, 3, dtype=torch.float64)
        for s in range(t + 1):
            S = S * decay[b, h, s].exp()
            if kept[b, h, t, s]:
                old = S.T @ k[b, h, s] if rule is delta_rule else 0.0
                S = S + beta[b, h, s] * torch.outer(k[b, h, s], v[b, h, s] - old)
        torch.testing.assert_close(found[b, h, t], S.T @ q[b, h, t], rtol=1e-9, atol=1e-9)


def test_the_best_linear_memory_has_its_known_error_above_the_limit():
    k, v = draw(2, 3, 20, 8), draw(2, 3, 20, 5, seed=1)
    every = torch.ones(2, 3, 20, 20, dtype=torch.bool)
    reads = linear_reads(k, k, v, every, ridge=1e-12)
    expected = best_errors(k, v, cluster_keys(k, tau=1 - 1e-12))
    torch.testing.assert_close((reads - v).square().sum((2, 3)), expected, rtol=1e-6, atol=1e-9)
    # One-hot values: the share 1 - d / N of them cannot be had, on average.
    one_hot = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    reads = linear_reads(k, k, one_hot, every, ridge=1e-12)
    error = (reads - one_hot).square().sum((2, 3)) / 20
    torch.testing.assert_close(error, torch.full_like(error, 1 - 8 / 20), rtol=1e-6, atol=0)
    # And below it none.
    few = every[:, :, :6, :6]
    reads = linear_reads(k[:, :, :6], k[:, :, :6], v[:, :, :6], few, ridge=1e-12)
    torch.testing.assert_close(reads, v[:, :, :6], rtol=1e-6, atol=1e-6)


def test_unlimited_memories_return_what_the_nearest_keys_have():
    k, v = draw(2, 3, 9, 12), draw(2, 3, 9, 5, seed=1)
    places = torch.arange(9)
    seen = (places <= places[:, None]).expand(2, -1, -1)
    kept = latest(k, seen)
    assert torch.equal(kept, seen[:, None].expand_as(kept))  # nothing is written again
    torch.testing.assert_close(nearest_reads(k, k, v, kept), v)
    torch.testing.assert_close(softmax_reads(k, k, v, seen, temperature=1e-3), v)
    means = v.cumsum(2) / (places[:, None] + 1)
    torch.testing.assert_close(softmax_reads(k, k, v, seen, temperature=1e9), means)
    assert nearest_reads(k, k, v, kept & False).abs().max() == 0
    again = torch.cat([k, k], 2)
    double = (torch.arange(18) <= torch.arange(18)[:, None]).expand(2, -1, -1)
    assert not latest(again, double)[:, :, 17, :9].any()
    assert latest(again, double)[:, :, 8, :9].all()


def test_effects_of_one_loss_have_no_error():
    totals = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    assert math.isnan(_mean_and_error(torch.zeros(3), totals)[0])


def test_modules_without_a_loss_by_token_have_no_effects():
    module = make_module("model=delta_dpfp")
    batch = make_batch()

    class BySequence(SimpleNamespace):
        def __call__(self, x):
            return module(x).sum(1)

    other = BySequence(network=module.network)
    assert intervene(other, [batch]) == []
