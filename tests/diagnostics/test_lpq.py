"""L_{p,q} norms against closed forms, projections against a search that knows no formula."""

import itertools
import math

import pytest
import torch

from fwlight.diagnostics.lpq import log_gap, log_rademacher, lpq_norm, project_lpq

V = torch.tensor([[3.0, -1.0], [-4.0, 2.0], [0.0, 2.0]], dtype=torch.float64)
INF = math.inf


@pytest.mark.parametrize(
    ("p", "q", "norm"),
    [
        (1, 1, 12.0),
        (2, 2, 34**0.5),
        (2, 1, 5 + 3.0),
        (1, INF, 7.0),
        (2, INF, 5.0),
        (INF, INF, 4.0),
        (INF, 1, 4 + 2.0),
        (1, 2, (7**2 + 5**2) ** 0.5),
        (3, 2, (91 ** (2 / 3) + 17 ** (2 / 3)) ** 0.5),
    ],
)
def test_norm_is_the_closed_form(p, q, norm):
    assert float(lpq_norm(V, p=p, q=q)) == pytest.approx(norm, rel=1e-14)
    assert lpq_norm(V.expand(5, 3, 2), p=p, q=q).shape == (5,)


EXACT = [(1, INF), (2, INF), (INF, INF), (1, 1), (2, 2)]


@pytest.mark.parametrize(("p", "q"), EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_projection_is_the_nearest_point_of_the_ball(p, q, seed):
    """No point of the ball is nearer in a direction that leads into it: |V - x|^2 has its minimum
    over a convex set at x if and only if (V - x).(y - x) <= 0 for all y of it, of which the
    extreme points suffice.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = 2 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    x = project_lpq(matrix, p=p, q=q, bound=1.5)
    assert float(lpq_norm(x, p=p, q=q)) == pytest.approx(1.5, rel=1e-12)
    gap = matrix - x
    # The support function of the ball: the largest gap.y over |y|_{p,q} <= bound.
    dual = {1: INF, 2: 2, INF: 1}
    largest = 1.5 * lpq_norm(gap, p=dual[p], q=dual[q])
    assert float((gap * x).sum()) == pytest.approx(float(largest), rel=1e-12)


def test_projection_onto_the_l1_ball_is_what_a_grid_finds():
    points = torch.linspace(-1, 1, 201, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(points.tolist(), repeat=2)), dtype=torch.float64)
    grid = grid[grid.abs().sum(1) <= 1 + 1e-12]
    for v in ([1.3, 0.4], [0.2, -2.0], [-0.7, 0.7], [0.3, 0.1], [5.0, 5.0]):
        column = torch.tensor(v, dtype=torch.float64)
        nearest = grid[(grid - column).square().sum(1).argmin()]
        found = project_lpq(column[:, None], p=1, q=INF, bound=1.0)[:, 0]
        torch.testing.assert_close(found, nearest, rtol=0, atol=0.011)


@pytest.mark.parametrize(("p", "q"), [*EXACT, (2, 1), (1, 2), (3, INF), (INF, 1)])
def test_projection_leaves_the_inside_alone_and_ends_on_the_sphere(p, q):
    norm = float(lpq_norm(V, p=p, q=q))
    assert torch.equal(project_lpq(V, p=p, q=q, bound=norm * 1.001), V)
    shorter = project_lpq(V, p=p, q=q, bound=norm / 3)
    assert float(lpq_norm(shorter, p=p, q=q)) == pytest.approx(norm / 3, rel=1e-12)
    assert not project_lpq(torch.zeros_like(V), p=p, q=q, bound=1.0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5, "q": 1, "bound": 1}, "p=0.5"),
        ({"p": 1, "q": math.nan, "bound": 1}, "q=nan"),
        ({"p": 1, "q": 1, "bound": 0}, "bound=0"),
    ],
)
def test_what_is_no_norm_or_no_ball_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        project_lpq(V, **options)


def test_bound_of_two_layers_is_that_of_hand():
    # n = 400, d = 31: 2 ln 64 / 400, and 1 / sqrt(400) = 1 / 20.
    first = 3 * 2 * math.sqrt(2 * math.log(64) / 400)
    second = 5 * (2 * first + 1 / 20)
    found = log_rademacher([3.0, 5.0], n=400, inputs=31, largest=2.0)
    assert math.exp(found) == pytest.approx(second, rel=1e-12)
    assert math.exp(log_rademacher([3.0], n=400, inputs=31, largest=0.5)) == pytest.approx(
        first / 2
    )
    gap = 4 * 10 * second / 0.5 + math.sqrt(math.log(20) / 800)
    assert math.exp(log_gap(found, n=400, classes=10, margin=0.5)) == pytest.approx(gap, rel=1e-12)


def test_bound_of_a_deep_network_is_a_number_where_its_exponential_is_none():
    found = log_rademacher([1e6] * 100, n=1000, inputs=64)
    assert 100 * math.log(2e6) > found > 100 * math.log(1e6)
    assert log_rademacher([1.0, 0.0], n=10, inputs=3) == -INF
    assert log_gap(-INF, n=200, classes=2) == pytest.approx(math.log(math.log(20) / 400) / 2)


def test_bound_is_above_what_random_signs_find():
    """The empirical Rademacher complexity of one layer is largest at a corner of the L1 ball."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(50, 6, generator=generator, dtype=torch.float64) - 1
    x = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], 1)
    signs = 2.0 * torch.randint(2, (2000, 50), generator=generator) - 1
    found = 3 * float((signs.double() @ x / 50).abs().amax(1).mean())
    bound = math.exp(log_rademacher([3.0], n=50, inputs=6))
    assert found < bound < 2 * found
