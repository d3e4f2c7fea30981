"""Recall, the best possible error and the verdict: closed forms, and loops over writes."""

import math

import pytest
import torch

from fwlight.diagnostics import (
    best_error,
    best_statistics,
    cluster_keys,
    finalise_recall,
    merge,
    nearest_writes,
    read_state,
    recall,
    recall_statistics,
    verdicts,
)
from fwlight.feature_maps import EluFeatureMap
from fwlight.mixers import FastWeights, Gates
from fwlight.ops import delta_rule, sum_rule

F64 = torch.float64


def after(k, v, beta, *, rule, key_sum=None, padding_mask=None):
    """Write, read every key back, and return clusters and the comparison of the last writes."""
    _, S = rule(None, k, v, beta)
    clusters = cluster_keys(k, padding_mask=padding_mask)
    reads = read_state(k, S, key_sum=key_sum)
    return S, clusters, recall(reads, v, clusters)


def values(outcome, clusters, name="last"):
    return finalise_recall(recall_statistics(name, outcome, clusters), name)


def hadamard(d):
    H = torch.ones(1, 1, dtype=F64)
    while len(H) < d:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


@pytest.mark.parametrize("b", [0.25, 1.0])
def test_one_hot_keys_under_the_delta_rule_lose_1_minus_beta_at_every_age(b):
    k = torch.eye(8, dtype=F64).expand(2, 3, 8, 8)
    v = torch.randn(2, 3, 8, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    _, clusters, outcome = after(k, v, torch.full((2, 3, 8), b, dtype=F64), rule=delta_rule)
    actual = values(outcome, clusters)
    torch.testing.assert_close(actual["last/error"], torch.full((3,), 1 - b, dtype=F64))
    by_age = actual["last/age/error"]
    torch.testing.assert_close(by_age[:, :4], torch.full((3, 4), 1 - b, dtype=F64))
    assert by_age[:, 4:].isnan().all()  # no age above 7
    torch.testing.assert_close(actual["last/keys/error"][:, 4], actual["last/error"])
    assert (actual["last/scaled_error"] < 1e-7).all()
    assert (actual["last/identified"] == 1).all()
    torch.testing.assert_close(actual["last/chance"], torch.full((3,), 1 / 8, dtype=F64))


def test_unit_norm_random_keys_keep_the_newest_write_only():
    generator = torch.Generator().manual_seed(1)
    k = torch.randn(1, 2, 12, 16, dtype=F64, generator=generator)
    k = k / k.norm(dim=-1, keepdim=True)
    v = torch.randn(1, 2, 12, 4, dtype=F64, generator=generator)
    _, clusters, outcome = after(k, v, torch.ones(1, 2, 12, dtype=F64), rule=delta_rule)
    by_age = values(outcome, clusters)["last/age/error"]
    assert (by_age[:, 0] < 1e-12).all()
    assert (by_age[:, 1:4] > 0.01).all()


@pytest.mark.parametrize("m", [1, 4])
def test_one_hot_keys_under_the_sum_rule_read_the_mean_of_their_writes(m):
    n = 6
    k = torch.eye(n, dtype=F64).repeat(m, 1)[None, None]
    v = torch.eye(m * n, dtype=F64)[None, None]
    _, clusters, outcome = after(k, v, None, rule=sum_rule, key_sum=k.sum(2))
    actual = values(outcome, clusters)
    assert float(actual["last/error"]) == pytest.approx(math.sqrt(1 - 1 / m), abs=1e-12)
    assert float(actual["last/mean_error"]) == pytest.approx(math.sqrt(1 - 1 / n))
    assert float(actual["last/identified"]) == 1
    assert float(actual["last/chance"]) == pytest.approx(1 / n)
    superseded = clusters.written & ~clusters.last
    reads = read_state(k, k.mT @ v, key_sum=k.sum(2))
    old = values(recall(reads, v, clusters, counted=superseded), clusters, "superseded")
    if m == 1:
        assert old["superseded/error"].isnan()
    else:
        assert float(old["superseded/error"]) == pytest.approx(math.sqrt(1 - 1 / m))
        assert old["superseded/age/error"][0, :3].isnan().all()  # the last six are not superseded


def test_two_bases_overload_a_memory_by_two():
    d = 16
    k = torch.cat([torch.eye(d, dtype=F64), hadamard(d) / d**0.5])[None, None]
    v = torch.eye(2 * d, dtype=F64)[None, None]
    ones = torch.ones(1, 1, 2 * d, dtype=F64)
    _S, clusters, outcome = after(k, v, None, rule=sum_rule)
    torch.testing.assert_close(outcome.error, ones)  # N / d - 1 for every key
    assert float(best_error(best_statistics(k, v, clusters))) == pytest.approx(0.5)
    expected = torch.linalg.lstsq(k, v).solution
    torch.testing.assert_close((v - k @ expected).square().sum(-1), ones / 2)
    _, _, outcome = after(k, v, ones, rule=delta_rule)
    torch.testing.assert_close(outcome.error[..., :d], 2 * ones[..., :d])
    assert outcome.error[..., d:].abs().max() < 1e-20


@pytest.mark.parametrize("read_norm", ["none", "output", "full"])
def test_reads_are_those_of_the_layers_memory(read_norm):
    memory = FastWeights(
        5,
        d_value=3,
        feature_map=EluFeatureMap,
        update_rule=delta_rule,
        read_norm=read_norm,
        key_norm="none" if read_norm == "full" else "sum",
    )
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(2, 2, 9, 5, dtype=F64, generator=generator) for _ in range(2))
    v = torch.randn(2, 2, 9, 3, dtype=F64, generator=generator)
    beta = torch.rand(2, 2, 9, dtype=F64, generator=generator)
    state = memory.write(k, v, Gates(beta))
    features = torch.nn.functional.elu(q) + 1
    if read_norm != "full":
        features = features / features.sum(-1, keepdim=True)
    reads = read_state(features, state.weights, key_sum=state.key_sum, eps=memory.read_eps)
    torch.testing.assert_close(reads, memory.read(q, state))


def test_recall_equals_loops_over_writes():
    generator = torch.Generator().manual_seed(2)
    k = torch.randn(2, 1, 9, 4, dtype=F64, generator=generator)[:, :, [0, 1, 2, 0, 3, 4, 1, 5, 6]]
    v = torch.randn(2, 1, 9, 3, dtype=F64, generator=generator)
    beta = torch.rand(2, 1, 9, dtype=F64, generator=generator)
    S, clusters, outcome = after(k, v, beta, rule=delta_rule)
    last = [2, 3, 4, 5, 6, 7, 8]
    assert clusters.last.all(1).nonzero()[:7, 1].tolist() == last
    right, totals = 0.0, torch.zeros(4, dtype=F64)
    groups = [{0, 3}, {1, 6}, {2}, {0, 3}, {4}, {5}, {1, 6}, {7}, {8}]
    for b in range(2):
        reads, wanted = (k[b, 0] @ S[b, 0])[last], v[b, 0, last]
        a = (reads * wanted).sum() / (reads * reads).sum()
        differences = (reads - wanted, a * reads - wanted, wanted.mean(0) - wanted, wanted)
        totals += torch.stack([x.square().sum() for x in differences])
        for t, r in zip(last, reads, strict=True):
            cosines = [torch.cosine_similarity(r, x, dim=0) for x in v[b, 0]]
            right += max(range(9), key=lambda s: float(cosines[s])) in groups[t]
    actual = values(outcome, clusters)
    for name, total in zip(("error", "scaled_error", "mean_error"), totals, strict=False):
        assert float(actual[f"last/{name}"]) == pytest.approx(float((total / totals[3]).sqrt()))
    assert float(actual["last/identified"]) == pytest.approx(right / 14)
    assert float(actual["last/chance"]) == pytest.approx(sum(len(groups[t]) for t in last) / 63)


def test_queries_are_held_to_the_nearest_key():
    k = torch.eye(4, dtype=F64).repeat(2, 1)[None, None]
    v = torch.eye(8, dtype=F64)[None, None]
    S, clusters, _ = after(k, v, torch.ones(1, 1, 8, dtype=F64), rule=delta_rule)
    q = torch.tensor([[0.1, 3.0, 0.0, 0.2], [0.0, 0.0, 0.0, 0.5]], dtype=F64)[None, None]
    targets = nearest_writes(q, clusters)
    assert targets.tolist() == [[[5, 7]]]
    outcome = recall(
        read_state(q, S), v, clusters, targets=targets, counted=torch.ones_like(targets) > 0
    )
    assert outcome.identified.tolist() == [[[1, 1]]]
    assert outcome.age.tolist() == [[[2, 0]]]


def test_recall_of_shards_adds_up_and_padding_is_irrelevant():
    generator = torch.Generator().manual_seed(3)
    k = torch.randn(3, 2, 10, 6, dtype=F64, generator=generator)
    v = torch.randn(3, 2, 10, 5, dtype=F64, generator=generator)
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0, 7:], mask[1, :3] = True, True
    S = k.masked_fill(mask[:, None, :, None], 0).mT @ v
    parts = ((0, slice(0, 7)), (1, slice(3, 10)), (2, slice(0, 10)))

    def statistics(k, v, S, mask=None):
        clusters = cluster_keys(k, padding_mask=mask)
        outcome = recall(read_state(k, S), v, clusters)
        return merge(recall_statistics("last", outcome, clusters), best_statistics(k, v, clusters))

    whole = statistics(k, v, S, mask)
    hole = mask[:, None, :, None]
    garbage = statistics(k.masked_fill(hole, torch.nan), v.masked_fill(hole, torch.nan), S, mask)
    alone = merge(
        *(statistics(k[[b], :, t], v[[b], :, t], S[[b]]) for b, t in parts),
        statistics(k[:1, :, :0], v[:1, :, :0], S[:1]),
    )
    for other in (garbage, alone):
        for name, x in whole.sums.items():
            torch.testing.assert_close(other.sums[name], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("t", "d"), [(5, 9), (9, 5), (40, 12)])
def test_best_error_is_that_of_least_squares(t, d):
    generator = torch.Generator().manual_seed(4)
    k = torch.randn(1, 1, t, d, dtype=F64, generator=generator)
    k[..., -1] = k[..., 0] * 2  # one direction less
    v = torch.randn(1, 1, t, 6, dtype=F64, generator=generator)
    residual = v - k @ (torch.linalg.pinv(k, rtol=1e-10) @ v)
    expected = residual.square().sum() / v.square().sum()
    actual = best_error(best_statistics(k, v, cluster_keys(k)))
    torch.testing.assert_close(actual[0], expected, rtol=1e-9, atol=1e-14)


def test_verdicts_of_what_could_be_held_and_what_is():
    best = torch.tensor([0.5, 0.01, 0.01, torch.nan], dtype=F64)
    scaled = torch.tensor([0.9, 0.3, 0.2, torch.nan], dtype=F64)  # squared: 0.09, 0.04
    expected = ["over capacity", "rule-limited", "healthy", "unused"]
    assert verdicts(best, scaled) == expected
