"""Root mean squares, rotary positions and activations in compiled code beside torch's."""

import pytest
import torch
import torch.nn.functional as F

from fwlight.mixers.rotary import rotated
from fwlight.models.blocks import FeedForward
from fwlight.ops import native

pytestmark = pytest.mark.skipif(
    native.absence(torch.float64) is not None, reason="there is no compiled code here"
)


def drawn(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("sizes", [(7, 13), (2, 33, 128), (2, 5, 3, 16)])
def test_rms_norm_and_two_derivatives_are_torchs(sizes):
    whole, weight = drawn(*sizes), drawn(sizes[-1], seed=1)
    x = whole.transpose(1, 2) if len(sizes) == 4 else whole  # heads inside tokens
    found = []
    for norm in (native.native_rms_norm, lambda x, w, eps: F.rms_norm(x, w.shape, w, eps)):
        y = norm(x, weight, 1e-3)
        g = drawn(*y.shape, seed=2)
        plainly = torch.autograd.grad(y, (whole, weight), g, retain_graph=True)
        first = torch.autograd.grad(y, (whole, weight), g, create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), (whole, weight, g))
        found.append((y, *plainly, *first, *second))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-11)


def test_rms_norm_gives_the_same_bits_over_threads_and_rounds_little():
    x, weight, g = drawn(512, 128).detach(), drawn(128, seed=1).detach(), drawn(512, 128, seed=2)
    threads, found = torch.get_num_threads(), []
    try:
        for n, dtype in ((1, torch.float32), (3, torch.float32), (1, torch.float64)):
            torch.set_num_threads(n)
            given = [z.to(dtype).requires_grad_() for z in (x, weight)]
            y = native.native_rms_norm(*given, 1e-5)
            found.append([y, *torch.autograd.grad(y, given, g.to(dtype))])
    finally:
        torch.set_num_threads(threads)
    for one, other, exact in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert (one - exact).abs().max() < 1e-6 * exact.abs().max()


def test_rotary_positions_and_two_derivatives_are_torchs():
    whole, k = drawn(2, 6, 3, 10), drawn(2, 3, 6, 10, seed=1)
    q, found = whole.transpose(1, 2), []
    for allowed in (True, False):
        both = rotated(q, k, first=5, allow_native=allowed)
        g = [drawn(*y.shape, seed=n) for n, y in enumerate(both, 2)]
        first = torch.autograd.grad(both, (whole, k), g, create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), g)
        (alone,) = torch.autograd.grad(both[1].sum(), k)
        found.append((*both, *first, *second, alone))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


KINDS = [("relu", True), ("gelu", True), ("gelu", False), ("swiglu", False)]


@pytest.mark.parametrize(("kind", "biased"), KINDS)
@pytest.mark.parametrize("sizes", [(7, 14), (2, 33, 128), (5, 2)])
def test_activation_and_two_derivatives_are_torchs(kind, biased, sizes):
    whole, found = drawn(*sizes[:-2], *sizes[:-3:-1]), []
    x, bias = whole.mT, drawn(sizes[-1], seed=1) if biased else None  # not contiguous
    given = [whole, bias] if biased else [whole]
    for run in (native.native_activation, native.plain_activation):
        y = run(x, kind, bias)
        g = drawn(*y.shape, seed=2)
        plainly = torch.autograd.grad(y, given, g, retain_graph=True)
        first = torch.autograd.grad(y, given, g, create_graph=True)
        second = torch.autograd.grad(sum(z.sin().sum() for z in first), [*given, g])
        found.append((y, *plainly, *first, *second))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("kind", "biased"), KINDS)
def test_activation_gives_the_same_bits_over_threads_and_rounds_little(kind, biased):
    x = torch.linspace(-30, 30, 512 * 128, dtype=torch.float64).view(128, 512).T
    bias = drawn(128, seed=1).detach() if biased else None
    threads, found = torch.get_num_threads(), []
    try:
        for n, dtype in ((1, torch.float32), (3, torch.float32), (1, torch.float64)):
            torch.set_num_threads(n)
            given = [z.to(dtype).requires_grad_() for z in (x, bias) if z is not None]
            y = native.native_activation(given[0], kind, *given[1:])
            found.append([y, *torch.autograd.grad(y.sum(), given)])
    finally:
        torch.set_num_threads(threads)
    for one, other, exact in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert (one - exact).abs().max() < 4e-7 * exact.abs().max()


def test_gelu_takes_numbers_that_are_none_and_ends_where_it_is_its_argument():
    x = torch.tensor([float("inf"), 1e30, 6.0, 5.5, 0.0, -5.5, -6.0, -1e30, float("nan")])
    x.requires_grad_()
    y = native.native_activation(x, "gelu")
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[:3], x[:3])
    assert y[4] == 0 == y[6] == y[7]
    assert torch.equal(slope[:3], torch.ones(3))
    assert slope[4] == 0.5
    assert slope[7] == 0
    assert y[8].isnan()
    assert slope[8].isnan()
    assert y[3].item() == pytest.approx(5.5)
    assert abs(y[5]) < 1e-6


def test_feed_forward_layer_is_torchs_with_hooks_and_under_autocast_too():
    torch.manual_seed(0)
    layer, x = FeedForward(32, 256, 0.0, kind="gelu"), torch.randn(3, 40, 32)
    plain = torch.nn.Sequential(layer[0], torch.nn.GELU(), layer[3])
    gradients = [torch.autograd.grad(net(x).sum(), layer.parameters()) for net in (layer, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), plain(x))
    seen = []
    layer[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x), plain(x))
    assert torch.equal(seen[0], seen[1])
