"""The share of writes that the norm projection shrinks, on closed forms and against the states."""

from functools import partial

import pytest
import torch

from fwlight.diagnostics import Written, diagnose
from fwlight.diagnostics.projection import projection, shrunk_writes
from fwlight.ops import delta_rule, fwm_rule, sum_rule

FIRST = partial(fwm_rule, project_first=True)
F64 = torch.float64


def axes(lengths: list[float], places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit keys along some axes, with values of these lengths."""
    k, v = torch.zeros(1, 1, len(lengths), 5, dtype=F64), torch.zeros(1, 1, len(lengths), 3)
    k[0, 0, range(len(places)), places] = 1.0
    v[0, 0, :, 1] = torch.tensor(lengths)
    return k, v.double()


@pytest.mark.parametrize(
    ("rule", "lengths", "places", "expected"),
    [
        # |S'|^2 = 0.36, 0.72, 1.08 -> 1, 1.36
        (FIRST, [0.6] * 4, [0, 1, 2, 3], [False, False, True, True]),
        (FIRST, [0.1] * 4, [0, 1, 2, 3], [False] * 4),
        (FIRST, [2.0, 2.0], [0, 1], [True, True]),
        (fwm_rule, [2.0, 2.0], [0, 1], [False, True]),  # into an empty memory
        (FIRST, [0.9, 0.1, 0.9], [0, 0, 1], [False, False, False]),  # 0.81, 0.01, 0.82
        (delta_rule, [2.0, 2.0], [0, 1], [False, False]),
    ],
)
def test_writes_along_axes(rule, lengths, places, expected):
    k, v = axes(lengths, places)
    beta = torch.ones_like(k[..., 0])
    assert shrunk_writes(Written(k, v, beta, rule, {}, None, None))[0, 0].tolist() == expected
    values = diagnose(k, v, beta, rule=rule).values
    if rule is delta_rule:
        assert "shrunk/mean" not in values
    else:
        assert values["shrunk/mean"].item() == sum(expected) / len(expected)


@pytest.mark.parametrize("rule", [FIRST, fwm_rule])
def test_share_is_that_of_the_states(rule):
    draw = torch.Generator().manual_seed(3)
    k, v = (torch.randn(2, 3, 9, n, dtype=F64, generator=draw) / 2 for n in (6, 4))
    beta, start = torch.rand(2, 3, 9, dtype=F64, generator=draw), torch.zeros(2, 3, 6, 4, dtype=F64)
    start[0] = 0.1
    beta[0, 0, 2] = 0.0
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    empties = torch.zeros(2, 3, 9, dtype=torch.bool)
    empties[0, :, 5] = True
    expected, S = torch.zeros(2, 3, 9, dtype=torch.bool), start
    for t in range(9):
        S = S.masked_fill(empties[:, :, t, None, None], 0.0)
        u = beta[:, :, t, None] * (v[:, :, t] - (k[:, :, t, None] @ S).squeeze(-2))
        grown = S + k[:, :, t, :, None] * u[:, :, None]
        new = grown.flatten(-2).norm(dim=-1) > 1
        expected[:, :, t] = new & (S.flatten(-2).any(-1) | (rule is FIRST))
        _, S = rule(None, *(x[:, :, t : t + 1] for x in (k, v, beta)), initial_state=S)
    w = Written(k, v, beta, rule, {"empties": empties}, start, padding)
    assert torch.equal(shrunk_writes(w), expected)
    counted = (beta != 0) & ~padding[:, None]
    share = (expected & counted).sum((0, 2)) / counted.sum((0, 2))
    options = {"padding_mask": padding, "initial_state": start, "gates": {"empties": empties}}
    found = diagnose(k, v, beta, rule=rule, **options).values["shrunk/mean"]
    torch.testing.assert_close(found, share.double())
    assert share.min() > 0
    assert share.max() < 1


def test_which_rules_project():
    sizes = {"d_dot": 4, "d_value": 2}
    assert projection(FIRST, has_beta=True, **sizes) == "all"
    assert projection(fwm_rule, has_beta=True, **sizes) == "later"
    assert projection(delta_rule, has_beta=True, **sizes) == "none"
    assert projection(sum_rule, has_beta=False, **sizes) == "none"
