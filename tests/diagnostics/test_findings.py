"""Everything that is found out about layers, and the report made of it."""

import re

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.diagnostics import finalise_diagnosis, measured_capacity
from fwlight.diagnostics.findings import find_out
from fwlight.diagnostics.layer_capacity import key_statistics, layer_capacity
from fwlight.diagnostics.layers import (
    Layer,
    Observer,
    layer_statistics,
    memory_layers,
    shown,
    watch_forward,
)
from fwlight.diagnostics.report import html_report
from fwlight.feature_maps import IdentityFeatureMap
from fwlight.mixers import FastWeights
from fwlight.mixers.observation import Writes
from fwlight.ops import delta_rule
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import LMBatch, Sequences


def make_network(*arguments):
    torch.manual_seed(0)
    config = compose_config(["size=tiny", *arguments]).config
    return build("network", config["network"], vocab_size=40)


def make_batches(n, b=2, t=12):
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(0, 40, (b, t + 1), generator=generator) for _ in range(n)]
    return [LMBatch(x[:, :-1], x[:, 1:]) for x in tokens]


def found(network, batches, **options):
    module = LanguageModelingModule(network, optimizer=OptimizerConfig(), max_steps=1)
    return find_out(module, batches, **options)


def test_findings_of_batches_are_those_of_all_sequences():
    network, batches = make_network("model=delta_dpfp"), make_batches(3)
    whole = LMBatch(*(torch.cat(x) for x in zip(*batches, strict=True)))
    layers = memory_layers(network)
    watchers = watch_forward(network, layers, lambda: network(whole.inputs))
    findings = found(network, batches, draws=0, n_tokens=4)
    assert [x.layer.name for x in findings] == ["layer0", "layer1"]
    for one in findings:
        statistics = layer_statistics(one.layer, shown(one.layer, watchers[one.layer.name]))
        expected = finalise_diagnosis(statistics, one.layer.memory.d_dot)
        assert one.heads.verdicts == expected.verdicts
        for name, x in expected.values.items():
            torch.testing.assert_close(
                one.heads.values[name], x, rtol=1e-5, atol=1e-7, equal_nan=True
            )
        assert one.capacity is None
        highest, lowest = one.tokens
        assert highest.mean[0] >= highest.mean[-1] >= lowest.mean[-1] >= lowest.mean[0]
        assert "recall error" in one.line


@pytest.mark.parametrize("model", ["delta_dpfp", "deltanet", "linear", "performer"])
def test_capacity_is_measured_under_the_layers_own_map_and_norms(model):
    network = make_network(f"model={model}", "size.d_head=8")
    if model != "performer":
        network.blocks[0].attention.memory.out_norm = torch.nn.Identity()
    findings = found(network, make_batches(2), draws=2)
    for one in findings:
        assert one.capacity.shape == (2,)
        assert ((one.capacity >= 1) & (one.capacity <= 2 * one.layer.memory.d_dot)).all()


def test_capacity_is_that_of_gaussian_keys_with_the_given_moments():
    memory = FastWeights(
        6, feature_map=IdentityFeatureMap, update_rule=delta_rule, key_norm="l2", read_norm="output"
    )
    k = torch.randn(4, 2, 50, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 50, dtype=torch.bool)
    mask[0, 5:] = True
    layer, observer = Layer("layer0", memory, 2), Observer()
    observer.write(Writes(k.masked_fill(mask[:, None, :, None], torch.nan), k, k, None, None))
    of = Sequences(torch.zeros(4, 50, dtype=torch.long), mask)
    (w,) = shown(layer, observer, of=of)
    held = layer_capacity(layer, key_statistics(w), draws=4, limit=40)

    def write_and_read(keys, values):
        keys = keys / keys.norm(dim=-1, keepdim=True)
        S = torch.zeros(1, 2, 6, values.shape[-1])
        for t in range(keys.shape[2]):
            key = keys[:, :, t]
            change = values[:, :, t] - (key[..., None, :] @ S).squeeze(-2)
            S = S + key[..., None] * change[..., None, :]
        return keys @ S / (keys @ keys.sum(2)[..., None] + 1e-5)

    by_head = [torch.cat([k[b, h][~mask[b]] for b in range(4)]) for h in range(2)]
    mean = torch.stack([x.mean(0) for x in by_head])
    covariance = torch.stack([torch.cov(x.T, correction=0) for x in by_head])
    expected = measured_capacity(write_and_read, mean, covariance, draws=4, limit=40)
    assert held.tolist() == expected.tolist()


@pytest.mark.parametrize("model", ["delta_dpfp", "sum_dpfp", "softmax"])
def test_report_needs_nothing_else_and_puts_the_verdict_first(model):
    network = make_network(f"model={model}")
    text = html_report(
        found(network, make_batches(2), draws=1),
        title="of <this>",
        of="two batches",
        configuration="key: <value>",
        decode=lambda ids: f"<{ids[0]}>",
    )
    assert "of &lt;this&gt;" in text
    assert "key: &lt;value&gt;" in text
    assert not re.search(r"<(1?\d|2\d|3\d)>", text)
    # Nothing is loaded from elsewhere.
    sources = re.findall(r"""(?:src|href)=["'](.{5})""", text)
    assert set(sources) <= {"data:"}
    assert "@import" not in text
    headings = re.findall("<h2>(.*?)</h2>", text)
    if model == "softmax":
        assert headings == ["Softmax attention", "Configuration"]
        return
    assert headings[0] == "Verdict"
    assert len(sources) == (17 if model == "delta_dpfp" else 13)  # axes
    assert ("Write strengths" in headings) == (model == "delta_dpfp")
    assert re.search(r"<b>\d of 4 heads.</b>", text)
    assert ("Tokens by beta" in text) == (model == "delta_dpfp")


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("delta_dpfp", "Stronger writes (beta, g) or keys further apart can help."),
        ("fwm", "Stronger writes (beta, g) or keys further apart can help."),
        ("sum_dpfp", "A rule that removes (delta instead of sum) or keys further apart can help."),
    ],
)
def test_report_advises_what_a_layer_does_not_have_already(model, advice):
    layers = found(make_network(f"model={model}"), make_batches(1), draws=0)
    for x in layers:  # as if every head were
        limited = ["rule-limited"] * len(x.heads.verdicts)
        vars(x)["heads"] = x.heads._replace(verdicts=limited)
    text = html_report(layers, title="", of="", configuration="")
    assert advice in text
    assert ("delta instead of sum" in text) == (model == "sum_dpfp")


def test_report_says_which_heads_turn_what_is_stored_and_how_fast_they_forget():
    layers = found(make_network("model=gated_deltanet"), make_batches(1), draws=0)
    for x in layers:
        values = {**x.heads.values, "g/near_2": torch.tensor([0.004, 0.52])}
        values["decay/half_life"] = torch.tensor([12.34, 1000.0])
        vars(x)["heads"] = x.heads._replace(values=values)
    text = html_report(layers, title="", of="", configuration="")
    assert "g near 2 in layer0 (head 1: 52% of writes); layer1 (head 1: 52% of writes):" in text
    assert "in layer0 after 12.3, 1e+03 tokens, head by head; in layer1" in text


def test_report_of_a_memory_that_neither_turns_nor_forgets_does_not_say_so():
    layers = found(make_network("model=deltanet"), make_batches(1), draws=0)
    text = html_report(layers, title="", of="", configuration="")
    assert "near 2" not in text
    assert "Half of what is stored" not in text
