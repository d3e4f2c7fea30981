import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.feature_maps import (
    DPFPFeatureMap,
    EluFeatureMap,
    FAVORFeatureMap,
    FeatureMap,
)
from fwlight.feature_maps.favor import _PositiveFeatures
from fwlight.mixers import FastWeights, MemoryState
from fwlight.models.dropout import Dropout
from fwlight.ops import native, sum_rule

D = 6


def made(option: str, *arguments: str) -> Callable[[], FeatureMap]:
    """What makes the map of an option of conf/ for heads of D numbers."""
    config = compose_config([f"model/feature_map={option}", f"size.d_head={D}", *arguments]).config
    return partial(build, option, config["model"]["feature_map"])


MAPS = {option: made(option) for option in groups()["model/feature_map"]}
MAPS["dpfp3"] = made("dpfp", "model.feature_map.nu=3")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", MAPS)
def test_map_has_the_announced_size_and_finite_gradients(name: str) -> None:
    phi = MAPS[name]().double()
    x = torch.cat([gaussian(2, 3, 5, D), torch.full((2, 3, 1, D), 100.0), -gaussian(2, 3, 1, D)], 2)
    x.requires_grad_()
    features, _ = phi.key(x)
    assert features.shape == (2, 3, 7, phi.d_dot(D))
    (grad,) = torch.autograd.grad(features.sum(), x)
    assert grad.isfinite().all()
    assert features.isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_map_treats_each_token_by_itself(name: str) -> None:
    phi = MAPS[name]().double()
    q = gaussian(2, 3, 5, D)
    torch.testing.assert_close(phi.query(q)[:, :, 2:3], phi.query(q[:, :, 2:3]))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("identity", lambda x: x),
        ("elu", lambda x: x + 1 if x > 0 else math.exp(x)),
        ("relu", lambda x: max(x, 0.0)),
        ("tanh", math.tanh),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_elementwise_map_follows_its_formula(name: str, formula) -> None:
    x = torch.tensor([-8.0, -1.5, 0.0, 0.25, 7.0], dtype=torch.float64)
    expected = torch.tensor([formula(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(MAPS[name]()(x), expected, rtol=1e-12, atol=0)


def test_elu_does_not_vanish_in_bfloat16() -> None:
    assert EluFeatureMap()(torch.tensor([-8.0], dtype=torch.bfloat16)) > 0


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_follows_equation_37(nu: int) -> None:
    x = gaussian(D)
    r = [max(v, 0.0) for v in x.tolist()] + [max(-v, 0.0) for v in x.tolist()]
    expected = [r[i] * r[(i - j) % (2 * D)] for j in range(1, nu + 1) for i in range(2 * D)]
    torch.testing.assert_close(
        DPFPFeatureMap(nu)(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_dpfp_splits_the_plane_into_four_orthogonal_regions() -> None:
    """Fig. 1 of the paper: one vector per quadrant, all features mutually orthogonal."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    features = DPFPFeatureMap(1)(corners)
    torch.testing.assert_close(features @ features.T, torch.eye(4))


def test_dpfp_refuses_impossible_nu() -> None:
    with pytest.raises(ValueError, match="nu=0"):
        DPFPFeatureMap(0)
    with pytest.raises(ValueError, match=r"nu=12 must be at most .* 11"):
        DPFPFeatureMap(12).d_dot(6)


def test_favor_estimates_the_softmax_kernel() -> None:
    torch.manual_seed(0)
    # The first unit vector shows a draw whose norms and directions depend on each other.
    unit = torch.eye(1, D, dtype=torch.float64)
    q = torch.cat([0.5 * gaussian(4, D, seed=1), unit])
    k = torch.cat([0.5 * gaussian(4, D, seed=2), unit])
    estimates = torch.stack(
        [
            phi(q) @ phi(k).T
            for phi in (
                FAVORFeatureMap(D, 3, input_scale=1.0, stabilise=False, kernel_eps=0.0).double()
                for _ in range(4000)
            )
        ]
    )
    standard_error = estimates.std(0) / 4000**0.5
    assert ((estimates.mean(0) - (q @ k.T).exp()).abs() < 5 * standard_error).all()


@pytest.mark.parametrize(("orthogonal", "d", "m"), [("features", 6, 10), ("inputs", 10, 6)])
def test_favor_draw_is_orthogonal_within_blocks(orthogonal: str, d: int, m: int) -> None:
    w = FAVORFeatureMap(d, m, orthogonal=orthogonal).double().projection
    vectors = w.T if orthogonal == "features" else w
    gram = vectors[:6] @ vectors[:6].T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-4)


def test_favor_stabilised_equals_plain_up_to_one_factor() -> None:
    torch.manual_seed(0)
    phi = FAVORFeatureMap(D, 8, kernel_eps=0.0).double()
    x = gaussian(2, 3, 5, D)
    plain = phi(x)
    for features in (phi.query(x), phi.key(x, scale_cancels=True)[0]):
        ratio = features / plain
        torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    features, offset = phi.key(x)
    ratio = features / plain
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    torch.testing.assert_close(ratio[:, :, 0, 0].log(), -offset)


def test_favor_key_offset_is_that_of_the_first_real_token_and_is_carried() -> None:
    phi = FAVORFeatureMap(D, 8).double()
    x = gaussian(2, 3, 6, D)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, :2] = True
    features, offset = phi.key(x, padding_mask=padding)
    _, alone = phi.key(x[1:, :, 2:])
    torch.testing.assert_close(offset[1:], alone)
    # All-padding first: the offset stays open until a real token comes.
    _, open_offset = phi.key(x[:, :, :2], padding_mask=padding[:, :2])
    second, offset2 = phi.key(x[:, :, 2:], offset=open_offset, padding_mask=padding[:, 2:])
    torch.testing.assert_close(offset2, offset)
    torch.testing.assert_close(second, features[:, :, 2:])


def test_favor_survives_keys_that_underflow_the_reference() -> None:
    x = (30 * gaussian(1, 1, 4, 64)).float()
    reference = FAVORFeatureMap(64, 16, input_scale=1.0, stabilise=False, kernel_eps=0.0)
    assert (reference.key(x)[0] == 0).all()
    features, _ = FAVORFeatureMap(64, 16).key(x)
    assert features.isfinite().all()
    assert (features.amax(-1)[:, :, 0] > 0.1).all()


def test_favor_of_half_precision_products_underflows_where_float32_does() -> None:
    phi = FAVORFeatureMap(64, 16, input_scale=1.0, stabilise=False, kernel_eps=0.0)
    x = (1.1 * gaussian(4, 64)).float()
    with torch.autocast("cpu", torch.float16):
        features = phi(x)
    assert features.dtype == torch.float32
    assert features.min() < 1e-13
    torch.testing.assert_close(features, phi(x), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_favor_underflows_as_exp_does(dtype: torch.dtype) -> None:
    lowest = math.log(torch.finfo(dtype).smallest_normal)
    wx = torch.linspace(0.65 * lowest, -0.65 * lowest, 999, dtype=dtype)[:, None]
    inputs = wx.requires_grad_(), torch.full_like(wx, -0.6 * lowest, requires_grad=True)
    y = _PositiveFeatures.apply(*inputs)
    expected = torch.cat([wx - inputs[1], -wx - inputs[1]], dim=1).exp()
    weights = torch.tensor([1.0, 2.0], dtype=dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    found, wanted = ((x, *torch.autograd.grad((x * weights).sum(), inputs)) for x in (y, expected))
    for x, other in zip(found, wanted, strict=True):
        rtol = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(x, other, rtol=rtol, atol=4 * smallest)
    assert y[0, 0] == 0
    assert 0 < y[(wx < 0.42 * lowest).nonzero()[-1, 0], 0] < torch.finfo(dtype).smallest_normal


@pytest.mark.parametrize(
    ("redraw", "in_training", "in_evaluation"),
    [("never", False, False), ("training", True, False), ("always", True, True)],
)
def test_favor_redraws_by_policy_and_reproducibly(
    redraw: str, in_training: bool, in_evaluation: bool
) -> None:
    phi = FAVORFeatureMap(D, 8, redraw=redraw)
    twin = FAVORFeatureMap(D, 8, redraw=redraw)
    twin.load_state_dict(phi.state_dict())
    for training, changes in ((True, in_training), (False, in_evaluation)):
        phi.train(training), twin.train(training)
        before = phi.projection.clone()
        phi.start_sequence(), twin.start_sequence()
        assert (not torch.equal(before, phi.projection)) == changes
        assert torch.equal(phi.projection, twin.projection)


RECOMPUTED = {
    **MAPS,
    **{f"favor {x}": partial(FAVORFeatureMap, D, 8, redraw=x) for x in ("training", "always")},
}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_what_is_computed_again_in_the_backward_pass_is_the_first_pass(
    name: str, training: bool, use_reentrant: bool
) -> None:
    """Two sequences, the first in two segments, are under way before the gradients are taken."""

    def steps(compute: Callable) -> list[torch.Tensor]:
        torch.manual_seed(0)
        phi = RECOMPUTED[name]().double().train(training)
        memory = FastWeights(D, feature_map=lambda: phi, update_rule=sum_rule).train(training)
        dropout = Dropout(0.5).train(training)
        x = gaussian(4, 2, 3, 5, D).requires_grad_()

        def segment(part: torch.Tensor, *carried: torch.Tensor) -> tuple:
            # One by one: checkpoints with use_reentrant=True see no tensors inside of tuples.
            weights, offset, *_ = *carried, None, None
            state = None if weights is None else MemoryState(weights, None, offset)
            o, last = memory(part, part, dropout(part), initial_state=state)
            return o, *(y for y in last if y is not None)

        o1, *state = compute(segment, x[0])
        o2, *_ = compute(segment, x[1], *state)
        o3, *_ = compute(segment, x[2])
        (o1.square().sum() + o2.sum() + (o3**3).sum()).backward()
        o4, *_ = compute(segment, x[3])  # draws go on as if nothing had been computed again
        kept = [y.clone() for y in phi.state_dict().values()]
        return [x.grad, o4, *kept]

    again = steps(lambda f, *inputs: checkpoint(f, *inputs, use_reentrant=use_reentrant))
    for found, wanted in zip(again, steps(lambda f, *inputs: f(*inputs)), strict=True):
        assert torch.equal(found, wanted)


def test_favor_layers_draw_differently() -> None:
    torch.manual_seed(0)
    assert not torch.equal(FAVORFeatureMap(D, 8).projection, FAVORFeatureMap(D, 8).projection)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_features": 0}, "num_features=0"),
        ({"num_features": 4, "orthogonal": "rows"}, "orthogonal='rows'"),
        ({"num_features": 4, "redraw": "sometimes"}, "redraw='sometimes'"),
    ],
)
def test_favor_refuses_bad_options(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAVORFeatureMap(D, **kwargs)


COMPILE = """
import sys
import torch
from fwlight.feature_maps import FAVORFeatureMap

redraw = sys.argv[1]
phi = FAVORFeatureMap(8, 16, redraw=redraw)

def features(x):
    phi.start_sequence()
    keys, offset = phi.key(x)
    return phi.query(x), keys, offset

compiled = torch.compile(features, fullgraph=redraw == "never")
for t in (5, 6, 7):  # after the first change of a size it becomes a symbol
    x = torch.randn(2, 3, t, 8)
    draws = phi.draws.clone()
    actual = compiled(x)
    phi.draws = draws  # the same draw once more
    torch.testing.assert_close(actual, features(x))
assert int(phi.draws) == (0 if redraw == "never" else 3)
"""


@pytest.mark.full
@pytest.mark.skipif(not native.can_run(torch.ones(1)), reason="there is no C++ compiler")
@pytest.mark.parametrize("redraw", ["never", "training"])
def test_favor_can_be_compiled(redraw: str) -> None:
    # In a process of its own: the checks of annotations under pytest cannot be compiled.
    command = [sys.executable, "-c", COMPILE, redraw]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
