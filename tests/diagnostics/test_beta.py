"""Statistics of the write strength against their formulas."""

import pytest
import torch

from fwlight.diagnostics import (
    Written,
    beta_statistics,
    finalise_diagnosis,
    finalise_tokens,
    merge,
    token_statistics,
)
from fwlight.ops import delta_rule

F64 = torch.float64


def make_writes(t, *, b=3, h=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(b, h, t, 4, dtype=F64, generator=generator) / 2
    return k, 2 * torch.rand(b, h, t, dtype=F64, generator=generator)


def values(statistics):
    return finalise_diagnosis(statistics, 4).values


def test_beta_statistics_equal_their_formulas():
    k, beta = make_writes(40)
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[0, 30:], mask[1, :7] = True, True
    hole = mask[:, None]
    garbage = (k.masked_fill(hole[..., None], torch.nan), beta.masked_fill(hole, torch.nan))
    actual = values(beta_statistics(*garbage, padding_mask=mask))
    g = beta * (k * k).sum(-1)
    for head in range(2):
        b, x = beta[:, head][~mask], g[:, head][~mask]
        fractions = {
            "beta/below_0.05": b < 0.05,
            "beta/above_0.95": b > 0.95,
            "g/below_0.05": x < 0.05,
            "g/near_1": (x - 1).abs() <= 0.05,
            "g/above_1": x > 1,
            "g/near_2": (x >= 1.9) & (x <= 2),
            "g/from_2": x >= 2,
        }
        for name, inside in fractions.items():
            assert float(actual[name][head]) == pytest.approx(float(inside.double().mean()))
        for name, y, absolute, relative in (("beta", b, 0.005, 0), ("g", x, 0, 0.06)):
            mean, std = y.mean(), y.std(unbiased=False)
            for key, wanted in (("mean", mean), ("std", std), ("min", y.min()), ("max", y.max())):
                torch.testing.assert_close(actual[f"{name}/{key}"][head], wanted)
            for percent in (5, 50, 95):
                value = float(actual[f"{name}/p{percent}"][head])
                low = float(y.quantile(percent / 100, interpolation="lower"))
                high = float(y.quantile(percent / 100, interpolation="higher"))
                assert low * (1 - relative) - absolute <= value
                assert value <= high * (1 + relative) + absolute
        late = beta[:, head, 8:16][~mask[:, 8:16]]
        torch.testing.assert_close(actual["beta/position_mean"][head, 4], late.mean())
        first = beta[:, head, 0][~mask[:, 0]]
        torch.testing.assert_close(actual["beta/position_mean"][head, 0], first.mean())


@pytest.mark.parametrize("beta", [None, 0.5, 2.0])
def test_constant_beta_has_no_spread(beta):
    k = torch.eye(4)[None, None].repeat(1, 3, 5, 1)
    strength = None if beta is None else torch.full((1, 3, 20), beta)
    wanted = 1.0 if beta is None else beta
    actual = values(beta_statistics(k, strength))
    for name in ("beta", "g"):
        for key in ("mean", "min", "max", "p5", "p50", "p95"):
            assert actual[f"{name}/{key}"].tolist() == pytest.approx([wanted] * 3)
        assert (actual[f"{name}/std"] < 1e-7).all()
        means = actual[f"{name}/position_mean"]
        assert means[:, :6].flatten().tolist() == pytest.approx([wanted] * 18)
        assert means[:, 6:].isnan().all()
    assert actual["g/near_1"].tolist() == [wanted == 1] * 3
    assert actual["g/from_2"].tolist() == [wanted == 2] * 3
    assert actual["g/near_2"].tolist() == [wanted == 2] * 3
    assert actual["g/above_1"].tolist() == [wanted == 2] * 3


def test_beta_statistics_of_shards_add_up():
    k, beta = make_writes(11)
    whole = beta_statistics(k, beta)
    added = merge(*(beta_statistics(k[part], beta[part]) for part in ([0], [], [1, 2])))
    for one, other in zip(whole, added, strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            torch.testing.assert_close(other[name], x, rtol=1e-12, atol=1e-12)
    nothing = values(beta_statistics(k[:, :, :0], beta[:, :, :0]))
    assert all(x.isnan().all() for x in nothing.values())


def test_tokens_are_ranked_by_their_mean_beta():
    tokens = torch.tensor([[3, 1, 3, 0], [1, 2, 4, 9]])
    beta = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.4, 0.6, 0.0, 0.0]], dtype=F64)
    beta = torch.stack([beta, beta + 0.1], dim=1)
    mask = torch.tensor([[False] * 4, [False, False, True, False]])
    k = torch.zeros(1, 2, 4, 3)
    parts = [
        token_statistics(
            Written(k, k, beta[part], delta_rule, padding_mask=mask[part], tokens=tokens[part]),
            n_types=6,
        )
        for part in ([0], [1])
    ]
    high, low = finalise_tokens(merge(*parts), 3)
    assert high.ids.tolist() == [3, 2, 1]
    assert high.mean.tolist() == pytest.approx([0.75, 0.65, 0.35])
    assert high.occurrences.tolist() == [2, 1, 2]
    assert low.ids.tolist() == [0, 1, 2]
    assert finalise_tokens(merge(*parts), 5, min_count=2)[1].ids.tolist() == [1, 3]
