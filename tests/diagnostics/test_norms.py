"""Norms of states and writes against float64 formulas and closed forms."""

from functools import partial

import pytest
import torch

from fwlight.diagnostics import (
    Written,
    effective_rank,
    merge,
    norm_statistics,
    old_values,
    state_norms,
    states_along,
    summarise,
    write_norms,
)
from fwlight.ops import delta_rule, fwm_rule, sum_rule

randn = partial(torch.randn, dtype=torch.float64)


def make_writes(t, *, b=2, h=3, d_key=5, d_value=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = randn(b, h, t, d_key, generator=generator)
    v = randn(b, h, t, d_value, generator=generator)
    return k / 2, v, torch.rand(b, h, t, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 3, 7), (1, 1, 1, 1)])
def test_state_norms_equal_their_formulas(shape):
    S = randn(*shape, generator=torch.Generator().manual_seed(1))
    norms = state_norms(S, p=3.0, q=1.5)
    sigma = torch.linalg.svdvals(S)
    share = sigma**2 / (sigma**2).sum(-1, keepdim=True)
    expected = (
        torch.linalg.matrix_norm(S),
        sigma[..., 0],
        (sigma**2).sum(-1) / sigma[..., 0] ** 2,
        torch.exp(-(share * share.log()).sum(-1)),
        ((S.abs() ** 3).sum(-2) ** (1.5 / 3)).sum(-1) ** (1 / 1.5),
    )
    for actual, wanted in zip(norms, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=0)


def test_state_norms_of_simple_matrices():
    one = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 6.0))
    norms = state_norms(torch.stack([one, torch.zeros(3, 5), torch.eye(3, 5)]), p=2.0, q=2.0)
    torch.testing.assert_close(norms.effective_rank.float(), torch.tensor([1.0, 0.0, 3.0]))
    torch.testing.assert_close(norms.stable_rank.float(), torch.tensor([1.0, 0.0, 3.0]))
    torch.testing.assert_close(norms.mixed, norms.frobenius)
    assert effective_rank(torch.ones(0, 4)) == 0
    assert state_norms(torch.full((2, 2), torch.nan)).spectral.isnan()
    with pytest.raises(ValueError, match=r"q=0\.5"):
        state_norms(one, q=0.5)


@pytest.mark.parametrize("rule", [sum_rule, delta_rule, fwm_rule])
@pytest.mark.parametrize("carried", [False, True])
def test_writes_equal_the_states_before_and_after(rule, carried):
    k, v, beta = make_writes(6)
    start = randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(2)) if carried else None
    w = Written(k, v, beta, rule, initial_state=start)
    states, old = states_along(w, range(7)), old_values(w)
    torch.testing.assert_close(old, torch.einsum("bhtkv,bhtk->bhtv", states[:, :, :-1], k))
    writes = write_norms(k, v, beta, None if rule is sum_rule else old)
    for t in range(6):
        inserted = beta[:, :, t, None, None] * k[:, :, t, :, None] * v[:, :, t, None]
        torch.testing.assert_close(writes.insert[:, :, t], torch.linalg.matrix_norm(inserted))
        if rule is not fwm_rule:  # which also projects
            change = torch.linalg.matrix_norm(states[:, :, t + 1] - states[:, :, t])
            torch.testing.assert_close(writes.change[:, :, t], change)


def test_states_along_takes_ascending_positions_only():
    w = Written(*make_writes(4), delta_rule)
    assert states_along(w, []).shape == (2, 3, 0, 5, 4)
    for positions in ([3, 2], [5], [-1]):
        with pytest.raises(ValueError, match="must ascend"):
            states_along(w, positions)


def test_norms_of_shards_add_up():
    k, v, beta = make_writes(9)
    writes = write_norms(k, v, beta)
    counted = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    whole = summarise(norm_statistics(writes, counted))
    parts = [
        norm_statistics(type(writes)(*(x[:, :, part] for x in writes)), counted[:, :, part])
        for part in (slice(0, 2), slice(2, 2), slice(2, 9))
    ]
    added = summarise(merge(*parts))
    for name, value in whole.items():
        torch.testing.assert_close(added[name], value, rtol=1e-12, atol=1e-14)
    for head in range(3):
        x = writes.insert[:, head][counted[:, head]]
        torch.testing.assert_close(whole["insert/mean"][head], x.mean())
        torch.testing.assert_close(whole["insert/std"][head], x.std(unbiased=False))
        assert whole["insert/max"][head] == x.max()
        assert whole["insert/min"][head] == x.min()
        # one of the two neighbouring samples, up to a bin of 6 %
        low = x.quantile(0.5, interpolation="lower") / 1.06
        high = x.quantile(0.5, interpolation="higher") * 1.06
        assert low <= whole["insert/p50"][head] <= high


def test_norms_of_nothing_are_nan():
    k, v, beta = make_writes(0)
    values = summarise(norm_statistics(write_norms(k, v, beta)))
    assert all(value.isnan().all() for value in values.values())
    assert old_values(Written(k, v, beta, delta_rule)).shape == (2, 3, 0, 4)
