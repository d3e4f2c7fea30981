"""All measurements at once: shards, padding, other people's layers, and the verdict."""

from itertools import pairwise

import pytest
import torch

from fwlight.diagnostics import Written, diagnose, diagnosis_statistics, merge
from fwlight.ops import delta_rule, fwm_rule, sum_rule

F64 = torch.float64


def make_writes(t, *, b=3, h=2, d_key=6, d_value=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, h, t, d_key, dtype=F64, generator=generator) for _ in range(2))
    k = k / k.norm(dim=-1, keepdim=True)
    v = torch.randn(b, h, t, d_value, dtype=F64, generator=generator)
    return q, k, v, torch.rand(b, h, t, dtype=F64, generator=generator)


@pytest.mark.parametrize("rule", [sum_rule, delta_rule, fwm_rule])
def test_diagnosis_of_shards_adds_up_and_padding_is_irrelevant(rule):
    q, k, v, beta = make_writes(10)
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0, 7:] = True
    hole = mask[:, None, :, None]
    q, k, v = (x.masked_fill(hole, torch.nan) for x in (q, k, v))
    beta = beta.masked_fill(hole[..., 0], torch.nan)

    def statistics(rows, mask=None, t=slice(None)):
        tensors = (x[rows][:, :, t] for x in (k, v, beta))
        options = {"q": q[rows][:, :, t], "padding_mask": mask, "query_mask": mask}
        return diagnosis_statistics(Written(*tensors, rule, **options).real())

    whole = statistics([0, 1, 2], mask)
    added = merge(statistics([0], mask[:1]), statistics([1]), statistics([2]), statistics([]))
    for one, other in zip(whole, added, strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            torch.testing.assert_close(other[name], x, rtol=1e-9, atol=1e-11)
    assert all(x.isfinite().all() for x in whole.sums.values())
    cut = statistics([0], t=slice(0, 7))
    alone = statistics([0], mask[:1])
    for name, x in cut.sums.items():
        torch.testing.assert_close(alone.sums[name], x, rtol=1e-9, atol=1e-11)


def test_diagnosis_of_nothing_is_unused():
    q, k, v, beta = make_writes(0)
    diagnosis = diagnose(k, v, beta, rule=delta_rule, q=q)
    assert diagnosis.verdicts == ["unused", "unused"]
    assert diagnosis.values["last/error"].isnan().all()


def test_diagnosis_works_on_another_layers_operator():
    """A stand-in for a kernel of another library: other layout, other argument names."""

    def foreign(queries, keys, values, strengths, state):
        o, S = [], state.clone()
        for i in range(keys.shape[1]):
            old = torch.einsum("bhk,bhkv->bhv", keys[:, i], S)
            u = strengths[:, i, :, None] * (values[:, i] - old)
            S = S + keys[:, i, :, :, None] * u[:, :, None]
            o.append(torch.einsum("bhk,bhkv->bhv", queries[:, i], S))
        return torch.stack(o, dim=1), S

    def rule(q, k, v, beta, *, initial_state=None):
        S = initial_state
        if S is None:
            S = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
        if k.shape[2] == 0:
            return (None if q is None else torch.zeros_like(v)), S
        queries = k if q is None else q
        o, S = foreign(*(x.transpose(1, 2) for x in (queries, k, v, beta)), S)
        return (None if q is None else o.transpose(1, 2)), S

    q, k, v, beta = make_writes(9)
    mine, other = (diagnose(k, v, beta, rule=r, q=q) for r in (delta_rule, rule))
    assert mine.verdicts == other.verdicts
    for name, x in mine.values.items():
        torch.testing.assert_close(other.values[name], x, equal_nan=True, rtol=1e-8, atol=1e-10)


def test_removal_is_zero_for_rules_that_add():
    _, k, v, beta = make_writes(9)
    for rule, removes in ((sum_rule, False), (delta_rule, True), (fwm_rule, True)):
        largest = diagnose(k, v, beta, rule=rule).values["remove/max"]
        assert bool((largest > 0).all()) == removes


def decaying(q, k, v, beta, *, initial_state=None):
    """S_t = 0.9 S_{t-1} + beta_t k_t (x) v_t."""
    S = (
        k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
        if initial_state is None
        else initial_state
    )
    for t in range(k.shape[2]):
        S = 0.9 * S + beta[:, :, t, None, None] * k[:, :, t, :, None] * v[:, :, t, None]
    return None if q is None else q @ S, S


def cleaning(q, k, v, beta, *, initial_state=None):
    """S_t = S_{t-1} - k_t (x) S_{t-1}^T k_t + beta_t k_t (x) v_t: beta is no share of what goes."""
    S = (
        k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
        if initial_state is None
        else initial_state
    )
    for t in range(k.shape[2]):
        key = k[:, :, t, :, None]
        S = S - key * (key.mT @ S) + beta[:, :, t, None, None] * key * v[:, :, t, None]
    return None if q is None else q @ S, S


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("rule", [decaying, cleaning])
def test_what_a_rule_of_ones_own_removes_is_the_difference_of_its_states(rule, carried):
    _, k, v, beta = make_writes(12)
    S = torch.ones(3, 2, 6, 5, dtype=F64) if carried else None
    values = diagnose(k, v, beta, rule=rule, initial_state=S).values
    states = [torch.zeros(3, 2, 6, 5, dtype=F64) if S is None else S]
    for t in range(12):
        part = (x[:, :, t : t + 1] for x in (k, v, beta))
        states.append(rule(None, *part, initial_state=states[-1])[1])
    change = torch.stack([b - a for a, b in pairwise(states)], dim=2)
    insert = beta[..., None, None] * k[..., :, None] * v[..., None, :]
    for name, x in (("insert", insert), ("change", change), ("remove", insert - change)):
        wanted = x.flatten(-2).norm(dim=-1)
        torch.testing.assert_close(values[f"{name}/mean"], wanted.mean((0, 2)))
        torch.testing.assert_close(values[f"{name}/max"], wanted.amax((0, 2)))


def test_growth_is_the_norm_after_powers_of_two():
    k = torch.eye(8)[None, None]
    values = diagnose(k, k, None, rule=sum_rule).values
    assert values["growth/frobenius"][0, 1:5].tolist() == pytest.approx([1, 2**0.5, 2, 8**0.5])
    assert values["growth/frobenius"][0, [0, 5]].isnan().all()
    assert float(values["frobenius/mean"]) == pytest.approx(8**0.5)


def test_verdicts_tell_the_keys_from_the_rule():
    generator = torch.Generator().manual_seed(5)

    def random_keys(n, d):
        k = torch.randn(1, 1, n, d, generator=generator)
        return k / k.norm(dim=-1, keepdim=True)

    def verdict(k, v, rule):
        return diagnose(k, v, torch.ones(k.shape[:3]), rule=rule).verdicts[0]

    orthogonal = torch.eye(16)[None, None]
    assert verdict(orthogonal, orthogonal, sum_rule) == "healthy"
    repeated = orthogonal.repeat(1, 1, 4, 1)  # other values every time: only removing helps
    v = torch.randn(1, 1, 64, 16, generator=generator)
    assert verdict(repeated, v, delta_rule) == "healthy"
    assert verdict(repeated, v, sum_rule) == "rule-limited"
    crowded = random_keys(64, 16)
    assert verdict(crowded, torch.eye(64)[None, None], delta_rule) == "over capacity"
