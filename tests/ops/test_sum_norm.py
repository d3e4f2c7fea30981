"""Division by the sum of features in compiled code against torch's operators."""

import pytest
import torch

from fwlight.ops import native
from tests.ops.discovery import assert_near

pytestmark = pytest.mark.skipif(
    not native.can_run(torch.ones(1)), reason="there is no C++ compiler"
)


def in_torch(x: torch.Tensor, eps: float) -> torch.Tensor:
    total = x.sum(-1, keepdim=True) + eps
    return x / total.masked_fill(total == 0, 1.0)


def features(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "eps"), [(1, 0.0), (5, 1e-5), (16, 0.0), (70, 0.5)])
def test_compiled_sum_norm_equals_the_operators_of_torch(d, eps, dtype):
    x = features(2, 3, 7, d, dtype=dtype)
    x[:, :, 2] = 0.0
    g = torch.linspace(-1, 1.5, x.numel(), dtype=dtype).view(x.shape)
    # Tokens before heads, a stride in the last dimension, one vector many times, nothing.
    for y in [x, x.transpose(1, 2), x.mT.contiguous().mT, x[:, :, :1].expand_as(x), x[:0]]:
        y, weights = y.detach().requires_grad_(), g[: len(y)].reshape(y.shape)
        results = []
        for function in (native.native_sum_norm, in_torch):
            normed = function(y, eps)
            results.append([normed, *torch.autograd.grad((normed * weights).sum(), y)])
        for actual, wanted in zip(*results, strict=True):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_compiled_sum_norm_can_be_differentiated_twice(eps):
    x = features(2, 1, 3, 4)
    x[0, 0, 1] = 0.0 if eps else x[0, 0, 1]
    x.requires_grad_()
    function = lambda y: native.native_sum_norm(y, eps)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_compiled_sum_norm_uses_threads_and_keeps_heads_inside_tokens():
    x = features(2, 300, 4, 32).transpose(1, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        y = native.native_sum_norm(x, 0.0)
    finally:
        torch.set_num_threads(before)
    assert_near(y, in_torch(x, 0.0), 1e-12)
    assert y.transpose(1, 2).is_contiguous()


def test_compiled_sum_norm_passes_the_checks_of_torch():
    x = features(2, 3, 4, 5).transpose(1, 2)
    y, inverse = torch.ops.fwlight.native_sum_norm(x, 0.1)
    backward = torch.ops.fwlight.native_sum_norm_backward.default
    torch.library.opcheck(torch.ops.fwlight.native_sum_norm.default, (x.requires_grad_(), 0.1))
    torch.library.opcheck(backward, (x.detach(), y.detach(), inverse.detach()))
