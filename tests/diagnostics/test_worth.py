"""Verdicts and advice made of effects that are given."""

import pytest

from fwlight.diagnostics.interventions import Effects
from fwlight.diagnostics.layers import memory_layers
from fwlight.diagnostics.worth import advise, horizon, in_words, worth
from fwlight.diagnostics.worth_report import worth_section
from tests.diagnostics.test_interventions import make_module

SURE = 1e-4


def effects(mean=0.1, **named):
    return {name: (float(x), SURE) for name, x in {"mean": mean, **named}.items()}


@pytest.mark.parametrize(
    ("given", "verdict", "nats"),
    [
        ({"mean": 0.0009, "linear": -1}, "unused", 0.0009),
        ({"mean": -0.1}, "unused", -0.1),
        ({}, "healthy", 0.1),
        ({"empty_4": 0.011, "linear": -0.0009}, "healthy", 0.1),
        ({"empty_4": 0.01}, "local", 0.1),
        ({"empty_4": 0.0, "last_4": -0.02}, "limited by interference", 0.02),
        ({"no_superseded": -0.02, "last_16": -0.03}, "limited by interference", 0.03),
        ({"linear": -0.03, "softmax": -0.02, "nearest": 0.2}, "limited by rule", 0.03),
        ({"linear": -0.01, "softmax": -0.05}, "limited by room", 0.04),
        ({"linear": -0.03, "beta_2": -0.04, "g_1": 0.3}, "limited by writing strength", 0.04),
    ],
)
def test_the_largest_gain_above_noise_is_the_limit(given, verdict, nats):
    found = worth(effects(**given))
    assert found.verdict == verdict
    assert found.nats == pytest.approx(nats)


def test_two_standard_errors_are_noise():
    assert worth({"mean": (0.1, 0.051)}).verdict == "unused"
    assert worth({"mean": (0.1, 0.01), "linear": (-0.1, 0.06)}).verdict == "healthy"


def test_horizon_is_where_emptying_costs_nothing():
    assert horizon(effects(empty_1=0.1, empty_2=0.01, empty_4=0.0, empty_16=0.0)) == 4
    assert horizon(effects(empty_1=0.1, empty_8=0.01)) is None


@pytest.mark.parametrize(
    ("model", "given", "named", "not_named"),
    [
        ("linear", {"linear": -0.1}, ["update_rule=delta"], []),
        ("delta_dpfp", {"linear": -0.1}, ["writes=2", "key_norm=l2"], ["delta"]),
        ("deltanet", {"last_4": -0.1}, ["model/decay=scalar"], ["update_rule", "l2"]),
        ("gated_deltanet", {"last_4": -0.1}, [], ["decay"]),
        ("delta_dpfp", {"softmax": -0.1}, ["nu=2 (now 1)", "size.d_head"], []),
        ("deltanet", {"softmax": -0.1}, ["size.d_head"], ["nu="]),
        ("deltanet", {"beta_2": -0.1}, ["beta_max=2 (now 1)"], []),
        ("deltaproduct", {"beta_2": -0.1}, [], ["beta_max"]),
        ("delta_dpfp", {"empty_4": 0.0}, ["short_conv=4"], []),
        ("deltanet", {"empty_4": 0.0}, [], ["short_conv"]),
        ("deltanet", {}, [], ["model"]),
    ],
)
def test_advice_names_what_is_not_there_and_only_that(model, given, named, not_named):
    network = make_module(f"model={model}").network
    layer = memory_layers(network)[0]
    found = [Effects(layer, effects(**given), [effects(mean=0.1)] * 2)]
    advice = advise(network, found)
    text = "; ".join(x.change for x in advice)
    assert all(x in text for x in named)
    assert not any(x in text for x in not_named)
    assert bool(advice) == bool(named)
    assert [x.nats for x in advice] == sorted((x.nats for x in advice), reverse=True)
    section = worth_section(found, advice)
    gains = any(effect < 0 for effect in given.values())
    assert ("Nothing here" in section) == (not advice and not gains)
    assert ("has no key" in section) == (not advice and gains)
    assert worth(found[0].whole).verdict in section
    assert worth(found[0].whole).verdict in in_words(found[0])


def test_unused_heads_are_advised_away_unless_all_are():
    network = make_module("model=deltanet").network
    layer = memory_layers(network)[0]
    one, all_ = (
        Effects(layer, effects(), [effects(mean=0.0), effects(mean=x)]) for x in (0.1, 0.0)
    )
    assert [x.change for x in advise(network, [one])] == [
        "fewer heads (size.n_heads=2 now): 1 of them unused"
    ]
    assert advise(network, [all_]) == []
