"""Load, utilisation and interference of keys against loops over pairs and closed forms."""

import pytest
import torch

from fwlight.diagnostics import (
    capacity_statistics,
    cluster_keys,
    finalise_diagnosis,
    merge,
    random_interference,
)
from fwlight.feature_maps import DPFPFeatureMap, EluFeatureMap


def make_keys(t, *, b=2, h=2, d=6, seed=0):
    """Keys of which some repeat, some up to a factor and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(b, h, t, d, dtype=torch.float64, generator=generator)
    k = k[:, :, torch.arange(t) % max(1, 2 * t // 3)]
    noise = torch.randn(k.shape, dtype=torch.float64, generator=generator)
    return k * torch.rand(b, h, t, 1, dtype=torch.float64, generator=generator) + 0.001 * noise


def values(k, padding_mask=None):
    clusters = cluster_keys(k, padding_mask=padding_mask)
    return finalise_diagnosis(capacity_statistics(k, clusters), k.shape[-1]).values


@pytest.mark.parametrize("t", [1, 2, 12])
def test_capacity_equals_loops_over_pairs(t):
    k = make_keys(t)
    actual = values(k)
    d = k.shape[-1]
    for head in range(2):
        loads, used, crosstalk, cosines = [], [], [], []
        for row in k[:, head]:
            cos = [[float(x @ y / x.norm() / y.norm()) for y in row] for x in row]
            sizes = [sum(c >= 0.95 for c in line) for line in cos]
            loads.append(sum(1 / n for n in sizes) / d)
            sigma = torch.linalg.svdvals(row / row.norm(dim=1, keepdim=True))
            share = sigma**2 / (sigma**2).sum()
            used.append(float(torch.exp(-(share * share.log()).sum())) / d)
            for i in range(t):
                others = [j for j in range(t) if cos[i][j] < 0.95]
                cosines += [abs(cos[i][j]) for j in others]
                noise = sum(abs(float(row[i] @ row[j])) / sizes[j] for j in others)
                crosstalk.append(noise / float(row[i] @ row[i]))
        for name, x in (("load", loads), ("utilisation", used), ("crosstalk", crosstalk)):
            assert float(actual[f"{name}/mean"][head]) == pytest.approx(sum(x) / len(x), rel=1e-9)
        assert float(actual["position_load/mean"][head]) == pytest.approx(t / d)
        if cosines:
            x = torch.tensor(cosines, dtype=torch.float64)
            assert float(actual["interference/mean"][head]) == pytest.approx(float(x.mean()))
            p95 = float(actual["interference/p95"][head])
            low = float(x.quantile(0.95, interpolation="lower")) - 0.005
            assert low <= p95 <= float(x.quantile(0.95, interpolation="higher")) + 0.005
        else:
            assert actual["interference/mean"][head].isnan()


def test_capacity_of_repeated_one_hot_keys():
    k = torch.eye(8, dtype=torch.float64).repeat(5, 1)[None, None] * 0.1
    clusters = cluster_keys(k)
    torch.testing.assert_close(clusters.different, torch.full((1, 1), 8.0, dtype=torch.float64))
    assert clusters.last[0, 0].nonzero().flatten().tolist() == list(range(32, 40))
    actual = values(k)
    expected = {"load": 1, "position_load": 5, "utilisation": 1, "interference": 0, "crosstalk": 0}
    for name, x in expected.items():
        assert float(actual[f"{name}/mean"]) == pytest.approx(x)


def test_capacity_ignores_padding_and_empty_rows():
    k = make_keys(12)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0, 9:], mask[1, :4], mask[2] = True, True, True
    k = torch.cat([k, k[:1]])
    garbage = torch.where(mask[:, None, :, None], torch.nan, k)
    actual, again = values(k, mask), values(garbage, mask)
    alone = merge(
        *(
            capacity_statistics(part, cluster_keys(part))
            for part in (k[:1, :, :9], k[1:2, :, 4:], k[:1, :, :0])
        )
    )
    for name, x in finalise_diagnosis(alone, 6).values.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(again[name], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("feature_map", "expected"),
    [(EluFeatureMap(), 7), (DPFPFeatureMap(nu=1), 88), (DPFPFeatureMap(nu=3), 169)],
)
def test_utilisation_of_512_random_keys(feature_map, expected):
    x = torch.randn(4, 1, 512, 64, generator=torch.Generator().manual_seed(0))
    k = feature_map.key(x, offset=None, scale_cancels=False, padding_mask=None)[0]
    used = values(k)["utilisation/mean"] * feature_map.d_dot(64)
    assert float(used) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("d", [1, 2, 3, 64])
def test_random_interference_is_that_of_random_keys(d):
    x = torch.randn(2, 200_000, d, generator=torch.Generator().manual_seed(0))
    cosine = torch.cosine_similarity(x[0], x[1], dim=-1).abs()
    mean, p95 = random_interference(d)
    assert mean == pytest.approx(float(cosine.mean()), rel=0.01)
    assert p95 == pytest.approx(float(cosine.quantile(0.95)), rel=0.01)
