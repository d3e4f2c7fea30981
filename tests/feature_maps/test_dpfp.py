"""DPFP in compiled code against the same map in torch's operators."""

import contextlib
import subprocess
import sys

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap
from fwlight.ops import native
from tests.ops.discovery import needs_compiler


def results(
    nu: int, x: torch.Tensor, *, eps: float | None = None, compiled: bool = True
) -> list[torch.Tensor]:
    with contextlib.nullcontext() if compiled else native.switched_off():
        if eps is None or not compiled:
            features = DPFPFeatureMap(nu)(x)
        else:
            features = native.native_dpfp(x, nu, eps)
    if eps is not None and not compiled:
        total = features.sum(-1, keepdim=True) + eps
        features = features / total.masked_fill(total == 0, 1.0)
    weights = torch.arange(features.numel(), dtype=x.dtype).cos().view(features.shape)
    return [features, *torch.autograd.grad((weights * features).sum(), x)]


def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [None, 0.0, 0.1])
@pytest.mark.parametrize(("d", "nu"), [(1, 1), (2, 3), (5, 9), (16, 1), (33, 3), (64, 70)])
def test_compiled_dpfp_equals_the_operators_of_torch(d, nu, eps, dtype):
    x = gaussian(2, 3, 7, d, dtype=dtype)
    x[:, :, 2] = 0.0
    x[:, :, 3, 0] = -0.0
    # Tokens before heads, a stride in the last dimension, one vector many times, other ranks.
    layouts = [x, x.transpose(1, 2), x.mT.contiguous().mT, x[:, :, :1].expand_as(x)]
    for y in [*layouts, x[0], x[0, 0, 0], x[None], x[:0]]:
        y = y.detach().requires_grad_()
        # Divided features lose digits where their sum is small, in torch's operators too.
        exact = y.detach().double().requires_grad_()
        expected = results(nu, exact, eps=eps, compiled=False)
        for actual, wanted in zip(results(nu, y, eps=eps), expected, strict=True):
            assert actual.dtype == dtype
            atol, rtol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
            torch.testing.assert_close(actual.double(), wanted, atol=atol, rtol=rtol)


@needs_compiler
def test_compiled_dpfp_uses_threads_and_keeps_heads_inside_tokens():
    x = gaussian(2, 300, 4, 32).transpose(1, 2).requires_grad_()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threads = results(3, x)
    finally:
        torch.set_num_threads(before)
    for actual, wanted in zip(threads, results(3, x), strict=True):
        assert torch.equal(actual, wanted)
        assert actual.transpose(1, 2).is_contiguous()


@needs_compiler
def test_features_too_small_for_a_sum_stay_as_they_are():
    # Every product is 0 in float32, of which forward and backward must think alike.
    x = torch.full((1, 1, 1, 4), 2.2e-23, requires_grad=True)
    features, gradient = results(2, x, eps=0.0)
    assert (features == 0).all()
    assert (gradient.abs() < 1e-20).all()


@needs_compiler
def test_compiled_dpfp_can_be_differentiated_twice():
    x = gaussian(2, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(DPFPFeatureMap(3), x)
    assert torch.autograd.gradgradcheck(DPFPFeatureMap(3), x)
    divided = lambda y: DPFPFeatureMap(3).normalised(y, "sum", 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(divided, x)
    assert torch.autograd.gradgradcheck(divided, x)


@needs_compiler
def test_compiled_dpfp_passes_the_checks_of_torch():
    x = gaussian(2, 3, 4, 5).transpose(1, 2)
    g = gaussian(2, 3, 4, 20).transpose(1, 2)
    x.requires_grad_()
    for eps in (None, 0.1):
        torch.library.opcheck(torch.ops.fwlight.native_dpfp.default, (x, 2, eps))
        backward = torch.ops.fwlight.native_dpfp_backward.default
        torch.library.opcheck(backward, (g, x.detach(), 2, eps))


@needs_compiler
def test_compiled_dpfp_knows_the_transforms_of_functions():
    x = gaussian(3, 4, 5)
    phi = DPFPFeatureMap(2)
    torch.testing.assert_close(torch.vmap(phi, in_dims=1, out_dims=1)(x), phi(x))
    (wanted,) = torch.autograd.grad(phi(x.requires_grad_()).square().sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda y: phi(y).square().sum())(x), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dpfp_in_half_precision_is_left_to_torch(dtype):
    x = gaussian(2, 3, 4, dtype=dtype).requires_grad_()
    for actual, wanted in zip(results(2, x), results(2, x, compiled=False), strict=True):
        assert torch.equal(actual, wanted)


COMPILE = """
import torch
from fwlight.feature_maps import DPFPFeatureMap

phi = DPFPFeatureMap(2)
compiled = torch.compile(phi, fullgraph=True)
for t in (5, 6, 7):  # after the first change of a size it becomes a symbol
    x = torch.randn(2, t, 3, 8).transpose(1, 2).requires_grad_()
    (wanted,) = torch.autograd.grad(phi(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], wanted)
exported = torch.export.export(phi, (x.detach(),))
assert "fwlight.native_dpfp" in exported.graph_module.print_readable(print_output=False)
"""


@needs_compiler
@pytest.mark.slow
def test_compiled_and_exported_programs_hold_the_operator():
    # In a process of its own: the checks of annotations under pytest cannot be compiled.
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
