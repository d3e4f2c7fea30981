"""Vectors of unit length in compiled code beside torch's."""

import pytest
import torch

from fwlight.feature_maps.elementwise import SiLUFeatureMap
from fwlight.ops import native
from fwlight.ops.native import native_l2_norm, plain_l2_norm

pytestmark = pytest.mark.skipif(
    native.absence(torch.float64) is not None, reason="there is no compiled code here"
)


def drawn(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
    x.flatten(0, -2)[0] = 0.0
    x.flatten(0, -2)[1] *= 1e-5
    return x.requires_grad_()


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("eps", "smooth"), [(1e-2, False), (1e-6, True), (0.0, False)])
@pytest.mark.parametrize("size", [1, 16, 21])
def test_values_and_two_derivatives_are_torchs(size, eps, smooth, silu):
    whole = drawn(2, 5, 3, size)
    x = whole.transpose(1, 2)  # heads inside tokens
    found = []
    for norm in (native_l2_norm, plain_l2_norm):
        y = norm(x, eps, smooth=smooth, silu=silu)
        g = drawn(*y.shape, seed=1)
        (plainly,) = torch.autograd.grad(y, whole, g, retain_graph=True)
        (first,) = torch.autograd.grad(y, whole, g, create_graph=True)
        second = torch.autograd.grad(first.sin().sum(), (whole, g))
        found.append([y, plainly, first, *second])
    # Of a vector of zeros the second derivative is no number.
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert all(x.isfinite().all() for x in found[0][:3])


def test_float32_rounds_no_worse_than_torch():
    x = drawn(8, 8, 64, 16).detach()
    g = drawn(8, 8, 64, 16, seed=1).detach()
    errors = []
    for norm in (native_l2_norm, plain_l2_norm):
        results = []
        for dtype in (torch.float32, torch.float64):
            given = x.to(dtype).requires_grad_()
            y = norm(given, 1e-6, smooth=True, silu=True)
            results.append([y, *torch.autograd.grad(y, given, g.to(dtype))])
        errors.append([(a - b).abs().max() / b.abs().max() for a, b in zip(*results, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= max(2 * theirs, 3e-7)


def test_the_map_uses_it_unless_something_else_is_asked():
    x = drawn(1, 2, 3, 4).float()
    assert SiLUFeatureMap().normalised(x, "l2", 1e-6) is not None
    assert SiLUFeatureMap().normalised(x, "sum", 1e-6) is None

    class Other(SiLUFeatureMap):
        def forward(self, x):
            return x

    assert Other().normalised(x, "l2", 1e-6) is None
    with native.switched_off():
        assert SiLUFeatureMap().normalised(x, "l2", 1e-6) is None
