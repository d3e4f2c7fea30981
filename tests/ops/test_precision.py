"""Accuracy in float32, and what half precision and autocast mean."""

import pytest
import torch

from tests.ops.discovery import CASES, KERNELS, assert_near, make_inputs, run, weighted_sum

each_case = pytest.mark.parametrize(("rule", "backend"), CASES)
each_kernel = pytest.mark.parametrize(("rule", "backend"), KERNELS)


@each_kernel
@pytest.mark.parametrize("n_keys", [1, 8])
@pytest.mark.parametrize(("t", "d_key", "d_value"), [(64, 32, 16), (256, 32, 16), (1024, 128, 64)])
def test_repeated_keys_stay_accurate_in_float32(rule, backend, n_keys, t, d_key, d_value):
    q, k, v, beta, state = (x.detach() for x in make_inputs(t, d_key=d_key, d_value=d_value))
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(n_keys, d_key, dtype=torch.float64, generator=generator)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    k = keys[torch.arange(t) % n_keys].expand_as(k)
    beta = torch.ones_like(beta) if n_keys == 1 else 0.9 + 0.1 * beta
    single = [x.float().requires_grad_() for x in (q, k, v, beta, state)]
    double = [x.detach().double().requires_grad_() for x in single]
    outputs, expected = run(rule, backend, *single), run(rule, "recurrent", *double)
    # The FWM rule divides by norms, whose errors add up over a long sequence.
    tolerance = 1e-5 if rule == "fwm_rule" and t > 256 else 5e-6
    for actual, wanted in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        assert_near(actual, wanted, tolerance)
    # Drawn, and growing steadily: the latter cancel in d_v, the more the longer the sequence is.
    drawn = [torch.randn(x.shape, generator=generator, dtype=torch.float32) for x in expected]
    growing = [torch.linspace(-1, 1.5, x.numel()).view(x.shape) for x in expected]
    for d_outputs in (drawn, growing):
        actual = torch.autograd.grad(outputs, single, d_outputs, retain_graph=True)
        doubles = [x.double() for x in d_outputs]
        wanted = torch.autograd.grad(expected, double, doubles, retain_graph=True)
        for a, b in zip(actual, wanted, strict=True):
            assert_near(a, b, tolerance)


@pytest.mark.parametrize("backend", ["native", "chunk"])
@pytest.mark.parametrize(("d_key", "d_value"), [(32, 16), (128, 64)])
def test_one_key_that_turns_the_sign_at_every_write_adds_up_no_error(backend, d_key, d_value):
    """Every eigenvalue along the key is -1, so no error decays."""
    t = 512
    q, k, v, beta, state = (x.detach() for x in make_inputs(t, d_key=d_key, d_value=d_value))
    generator = torch.Generator().manual_seed(3)
    key = torch.randn(d_key, dtype=torch.float64, generator=generator)
    k = (key / key.norm()).expand_as(k)
    single = [x.float().requires_grad_() for x in (q, k, v, torch.full_like(beta, 2.0), state)]
    double = [x.detach().double().requires_grad_() for x in single]
    outputs, expected = (
        run("delta_rule", backend, *single),
        run("delta_rule", "recurrent", *double),
    )
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float32) for x in expected]
    found = torch.autograd.grad(outputs, single, weights)
    wanted = torch.autograd.grad(expected, double, [x.double() for x in weights])
    for a, b in zip((*outputs, *found), (*expected, *wanted), strict=True):
        assert_near(a, b, 1e-5)


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32_and_returns_the_dtype_of_v(rule, backend, dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in make_inputs(70)]
    full = [x.detach().float().requires_grad_() for x in inputs]
    (o, state), (expected_o, expected_state) = (
        run(rule, backend, *inputs),
        run(rule, backend, *full),
    )
    assert (o.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(o, expected_o.to(dtype))
    assert torch.equal(state, expected_state)
    gradients = torch.autograd.grad(weighted_sum(o.float(), state), inputs)
    expected = torch.autograd.grad(weighted_sum(expected_o, expected_state), full)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, wanted, 2e-2)


@each_kernel
def test_autocast_does_not_reach_the_rules(rule, backend):
    inputs = [x.detach().float().requires_grad_() for x in make_inputs(70)]
    expected = run(rule, backend, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run(rule, backend, *inputs)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, wanted)
    if backend != "recurrent":  # whose backward pass is torch's own
        wanted_gradients = torch.autograd.grad(weighted_sum(*expected), inputs)
        loss = weighted_sum(*outputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gradients = torch.autograd.grad(loss, inputs)
        for actual, wanted in zip(gradients, wanted_gradients, strict=True):
            assert torch.equal(actual, wanted)
