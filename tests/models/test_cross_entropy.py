"""The cross-entropy in compiled code beside torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from fwlight.models import cross_entropy
from fwlight.models.cross_entropy import CrossEntropy
from fwlight.ops import native
from fwlight.types import IGNORE_INDEX


@pytest.fixture(autouse=True)
def _also_few(monkeypatch):
    monkeypatch.setattr(cross_entropy, "WORTH_IT", 0)


pytestmark = pytest.mark.skipif(
    native.absence(torch.float32) is not None, reason="there is no compiled code here"
)


def drawn(rows, size, dtype, *, scale=3.0):
    generator = torch.Generator().manual_seed(size)
    x = scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    targets = torch.randint(size, (rows,), generator=generator)
    targets[::3] = IGNORE_INDEX
    g = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), targets, g.to(dtype)


def plain(x, targets, smoothing=0.0):
    with native.switched_off():
        return CrossEntropy()(x, targets, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 3, 16, 31, 130, 1001])
def test_values_and_two_derivatives_are_torchs(size, smoothing):
    x, targets, g = drawn(7, size, torch.float64)
    ours = CrossEntropy()(x, targets, label_smoothing=smoothing)
    theirs = plain(x, targets, smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    assert ours[0] == 0
    found = []
    for loss in (ours, theirs):
        (first,) = torch.autograd.grad(loss, x, g, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((first, second))
    (again,) = torch.autograd.grad(CrossEntropy()(x, targets, label_smoothing=smoothing), x, g)
    torch.testing.assert_close(again, found[1][0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_float32_rounds_no_worse_than_torch(scale):
    x, targets, g = drawn(64, 5765, torch.float32, scale=scale)
    exact = x.detach().double().requires_grad_()
    wanted = plain(exact, targets)
    (slope,) = torch.autograd.grad(wanted, exact, g.double())
    errors = []
    for nll in (CrossEntropy()(x, targets), plain(x, targets)):
        (found,) = torch.autograd.grad(nll, x, g)
        errors.append(((nll - wanted).abs().max() / scale, (found - slope).abs().max()))
    (loss, gradient), theirs = errors
    assert loss <= max(theirs[0], 1e-6)
    assert gradient <= max(theirs[1], 3e-7)


def test_gradients_of_equal_numbers_and_bits_over_threads():
    x, targets, _ = drawn(64, 1000, torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            loss = CrossEntropy()(x, targets)
            found.append((loss, *torch.autograd.grad(loss.sum(), x)))  # g has no stride here
    finally:
        torch.set_num_threads(threads)
    for loss, slope in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(slope, found[0][1])


def test_what_is_not_finite_shows():
    x = torch.zeros(4, 20)
    x[0, 17], x[1, 3], x[2, 5], x[3] = math.nan, math.inf, -math.inf, -math.inf
    targets = torch.tensor([1, 1, 5, 0])
    ours, theirs = CrossEntropy()(x, targets), plain(x, targets)
    assert ours[:2].isnan().all()
    assert theirs[:2].isnan().all()
    assert ours[2] == theirs[2] == math.inf
    assert ours[3].isnan()


def test_a_target_beyond_the_row_is_refused():
    with pytest.raises(IndexError, match="a target is 20, and there are 20 logits"):
        CrossEntropy()(torch.zeros(2, 20), torch.tensor([3, 20]))


def test_transposed_logits_and_other_formats():
    x, targets, _ = drawn(5, 40, torch.float32)
    turned = x.detach().T.contiguous().T
    torch.testing.assert_close(CrossEntropy()(turned, targets), plain(x, targets))
    half = x.detach().bfloat16()
    assert CrossEntropy()(half, targets).dtype == torch.float32
    torch.testing.assert_close(
        torch.func.vmap(lambda row, c: F.cross_entropy(row, c))(x, targets.clamp(min=0)),
        torch.func.vmap(lambda row, c: CrossEntropy()(row[None], c[None])[0])(
            x, targets.clamp(min=0)
        ),
    )
