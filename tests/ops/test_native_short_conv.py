"""The short convolution in compiled code beside torch's."""

import pytest
import torch

from fwlight.mixers import ShortConv
from fwlight.ops import native
from fwlight.ops.native.short_conv import native_short_conv, plain_short_conv

pytestmark = pytest.mark.skipif(
    native.absence(torch.float64) is not None, reason="there is no compiled code here"
)


def drawn(*sizes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize(("t", "c", "width"), [(1, 5, 4), (2, 64, 3), (70, 65, 4), (9, 130, 7)])
def test_values_and_two_derivatives_are_torchs(t, c, width, carried):
    whole, weight, tail = drawn(2, t, c + 3), drawn(c, width), drawn(2, width - 1, c)
    x = whole[..., 3:]  # of a wider row
    given = [whole, weight, *[tail] * carried]
    found = []
    for convolve in (native_short_conv, plain_short_conv):
        y = convolve(x, weight, tail if carried else None)
        g = drawn(*y.shape, seed=1)
        plainly = torch.autograd.grad(y, given, g, retain_graph=True)
        first = torch.autograd.grad(y, given, g, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), [*given, g])
        found.append((y, plainly, first, second))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_float32_over_threads_and_against_float64():
    x, weight = drawn(8, 64, 384, dtype=torch.float32), drawn(384, 4, dtype=torch.float32)
    exact = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    y = plain_short_conv(*exact, None)
    g = drawn(*y.shape, seed=1).detach()
    wanted = [y, *torch.autograd.grad(y, exact, g)]
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            y = native_short_conv(x, weight, None)
            found.append([y, *torch.autograd.grad(y, (x, weight), g.float())])
    finally:
        torch.set_num_threads(threads)
    for one, other, best in zip(*found, wanted, strict=True):
        assert torch.equal(one, other)
        assert (one - best).abs().max() < 2e-6 * best.abs().max()


def test_the_layer_uses_it_unless_told_otherwise(monkeypatch):
    called = []
    monkeypatch.setattr(native, "native_short_conv", lambda *x: called.append(1) or x[0])
    conv, x = ShortConv(8, 4), drawn(1, 5, 8, dtype=torch.float32)
    conv(x)
    assert called
    called.clear()
    conv(x, allow_native=False)
    with native.switched_off():
        conv(x)
    assert not called
