"""Root mean squares and rotary positions in compiled code beside torch's."""

import pytest
import torch
import torch.nn.functional as F

from fwlight.mixers.rotary import rotated
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
    whole = drawn(2, 6, 3, 10)
    x, found = whole.transpose(1, 2), []
    for allowed in (True, False):
        y = rotated(x, first=5, allow_native=allowed)
        g = drawn(*y.shape, seed=1)
        (first,) = torch.autograd.grad(y, whole, g, create_graph=True)
        found.append((y, first, *torch.autograd.grad(first.sin().sum(), g)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
