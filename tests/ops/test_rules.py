"""Every update rule and back end against the loops of tests/reference.py, and by its properties."""

import functools
import importlib

import pytest
import torch
from torch import Tensor

from tests.ops.discovery import (
    CASES,
    KERNELS,
    assert_near,
    make_inputs,
    reference,
    relative_error,
    run,
    weighted_sum,
)

each_case = pytest.mark.parametrize(("rule", "backend"), CASES)
each_kernel = pytest.mark.parametrize(("rule", "backend"), KERNELS)


@functools.cache
def expected_results(rule: str, t: int, carried: bool) -> tuple[list[Tensor], list[Tensor]]:
    inputs = make_inputs(t)
    q, k, v, beta, state = inputs
    leaves = inputs if carried else inputs[:4]
    outputs = reference(rule, q, k, v, beta, state if carried else None)
    return list(outputs), list(torch.autograd.grad(weighted_sum(*outputs), leaves))


@each_case
@pytest.mark.parametrize("t", [1, 63, 64, 65, 200, 300])
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
def test_rule_equals_the_loop_in_values_and_gradients(rule, backend, t, carried):
    inputs = make_inputs(t)
    leaves = inputs if carried else inputs[:4]
    outputs = run(rule, backend, *leaves)
    gradients = torch.autograd.grad(weighted_sum(*outputs), leaves)
    expected_outputs, expected_gradients = expected_results(rule, t, carried)
    for actual, expected in zip(outputs, expected_outputs, strict=True):
        assert actual.dtype == torch.float64
        assert_near(actual, expected)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        assert_near(actual, expected)


@each_kernel
@pytest.mark.parametrize("part", ["output", "state"])
def test_rule_gradients_from_one_result_alone(rule, backend, part):
    inputs = make_inputs(70)
    if part == "state":
        inputs[0] = inputs[0].detach()
    leaves = [x for x in inputs if x.requires_grad]

    def gradients(outputs):
        loss = weighted_sum(outputs[0], torch.zeros_like(outputs[1]))
        loss = weighted_sum(None, outputs[1]) if part == "state" else loss
        return torch.autograd.grad(loss, leaves)

    expected = gradients(reference(rule, *inputs))
    for actual, wanted in zip(gradients(run(rule, backend, *inputs)), expected, strict=True):
        assert_near(actual, wanted)


@each_case
def test_rule_passes_gradcheck(rule, backend):
    assert torch.autograd.gradcheck(
        lambda *inputs: run(rule, backend, *inputs), make_inputs(5, h=1, d_key=3, d_value=2)
    )


@each_case
def test_writing_without_queries_gives_the_same_state_and_gradients(rule, backend):
    q, *inputs = make_inputs(70)
    _, expected = run(rule, backend, q, *inputs)
    o, state = run(rule, backend, None, *inputs)
    assert o is None
    assert_near(state, expected, 1e-12)
    for actual, wanted in zip(
        torch.autograd.grad(weighted_sum(None, state), inputs),
        torch.autograd.grad(weighted_sum(None, expected), inputs),
        strict=True,
    ):
        assert_near(actual, wanted, 1e-12)


@each_case
@pytest.mark.parametrize("cut", [1, 50, 64])
def test_two_halves_with_carried_state_equal_the_whole(rule, backend, cut):
    *tokens, state = make_inputs(130)
    whole, last = run(rule, backend, *tokens, state)
    first, middle = run(rule, backend, *(x[:, :, :cut] for x in tokens), state)
    second, end = run(rule, backend, *(x[:, :, cut:] for x in tokens), middle)
    assert_near(torch.cat([first, second], dim=2), whole)
    assert_near(end, last)
    halves = torch.autograd.grad(weighted_sum(torch.cat([first, second], 2), end), (*tokens, state))
    for actual, wanted in zip(
        halves, torch.autograd.grad(weighted_sum(whole, last), (*tokens, state)), strict=True
    ):
        assert_near(actual, wanted)


@each_case
def test_step_by_step_equals_parallel(rule, backend):
    *tokens, _ = make_inputs(67)
    whole, last = run(rule, backend, *tokens)
    state, outputs = None, []
    for t in range(67):
        o, state = run(rule, backend, *(x[:, :, t : t + 1] for x in tokens), state)
        outputs.append(o)
    assert_near(torch.cat(outputs, dim=2), whole)
    assert_near(state, last)


@each_case
@pytest.mark.parametrize("t", [0, 40, 64, 99])
def test_future_tokens_change_no_output(rule, backend, t):
    *tokens, state = (x.detach() for x in make_inputs(100))
    before, _ = run(rule, backend, *tokens, state)
    changed = [x.clone() for x in tokens]
    for x in changed:
        x[:, :, t + 1 :] += 3.0
    changed[0][:, :, t] = tokens[0][:, :, t]
    after, _ = run(rule, backend, *changed, state)
    assert_near(after[:, :, : t + 1], before[:, :, : t + 1], 1e-12)
    tokens[2][:, :, t] += 1.0
    assert relative_error(run(rule, backend, *tokens, state)[0][:, :, t], before[:, :, t]) > 1e-3


@each_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", range(5), ids=["q", "k", "v", "beta", "state"])
def test_what_is_not_finite_stays_in_its_head_and_near_its_token(rule, backend, position, bad):
    token, before = 110, {"recurrent": 0, "native": 15}.get(backend, 63)
    results = []
    for spoiled in (False, True):
        inputs = make_inputs(150, b=2)
        if spoiled:
            at = (1, 0, 2, 3) if position == 4 else (1, 0, token, 3)[: inputs[position].ndim]
            inputs[position].data[at] = bad
        outputs = run(rule, backend, *inputs)
        results.append([*outputs, *torch.autograd.grad(weighted_sum(*outputs), inputs)])
    for clean, found in zip(*results, strict=True):
        assert torch.equal(found[0], clean[0])
        assert torch.equal(found[1, 1], clean[1, 1])
    o, expected = results[1][0][1, 0], results[0][0][1, 0]
    assert not o[0 if position == 4 else token].isfinite().all()
    if position < 4:
        assert torch.equal(o[: token - before], expected[: token - before])
    if rule == "fwm_rule" and position == 2 and bad != bad:
        assert o[token].isnan().all()  # the norm ties the columns together


@each_case
def test_subnormal_numbers_count_as_they_are_or_as_zero(rule, backend):
    tiny = torch.finfo(torch.float32).tiny
    q, k, v, beta, _ = (x.detach().float() for x in make_inputs(20))
    v = v.double() * (tiny / 8 / v.abs().max())
    expected, _ = reference(rule, q.double(), k.double(), v, beta.double())
    assert (expected != 0).all()
    found, _ = run(rule, backend, q, k, v.float(), beta)
    assert ((found == 0) | ((found - expected).abs() <= tiny / 1000)).all()


@each_case
@pytest.mark.parametrize("null", ["beta", "k"])
@pytest.mark.parametrize("t", [1, 100])
def test_null_writes_leave_the_state_untouched(rule, backend, null, t):
    q, k, v, beta, state = (x.detach() for x in make_inputs(t))
    nothing = torch.zeros_like(beta if null == "beta" else k)
    k, beta = (k, nothing) if null == "beta" else (nothing, beta)
    o, last = run(rule, backend, q, k, v, beta, 3 * state)
    assert torch.equal(last, 3 * state)
    assert_near(o, q @ (3 * state), 1e-12)


@each_case
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
def test_null_writes_in_between_change_nothing(rule, backend, carried):
    inputs = make_inputs(130)
    *tokens, state = inputs
    kept = torch.arange(130) % 3 == 1
    hidden = [x.detach().clone() for x in tokens]
    hidden[3][:, :, ::6] = 0.0
    hidden[1][:, :, 3::6] = 0.0
    hidden[1][:, :, 2::3] = 0.0
    hidden = [x.requires_grad_() for x in hidden]
    state = state if carried else None
    expected, last = run(rule, backend, *(x[:, :, kept] for x in tokens), state)
    o, end = run(rule, backend, *hidden, state)
    assert_near(o[:, :, kept], expected)
    assert_near(end, last)
    for gradient in torch.autograd.grad(weighted_sum(o, end), hidden):
        assert gradient.isfinite().all()


@each_case
def test_one_hot_keys_retrieve_exactly(rule, backend):
    k = torch.eye(70)[torch.randperm(70, generator=torch.Generator().manual_seed(1))][None, None]
    # Small values: the fwm rule leaves weights inside the unit ball as they are.
    v = torch.randn(1, 1, 70, 6, generator=torch.Generator().manual_seed(2)) / 100
    ones = torch.ones(1, 1, 70)
    o, state = run(rule, backend, k, k, v, ones)
    assert torch.equal(o, v)
    assert torch.equal(run(rule, backend, k.flip(2), 0 * k, v, ones, state)[0], v.flip(2))


@pytest.mark.parametrize("rule", [rule for rule, backend in KERNELS if backend == "chunk"])
@pytest.mark.parametrize("chunk_size", [1, 16, 32, 100, 1000])
def test_chunk_size_changes_nothing(rule, chunk_size):
    inputs = make_inputs(100)
    chunk_rule = getattr(importlib.import_module(f"fwlight.ops.{rule}"), f"chunk_{rule}")
    outputs, expected = chunk_rule(*inputs, chunk_size=chunk_size), run(rule, "recurrent", *inputs)
    for actual, wanted in zip(
        [*outputs, *torch.autograd.grad(weighted_sum(*outputs), inputs)],
        [*expected, *torch.autograd.grad(weighted_sum(*expected), inputs)],
        strict=True,
    ):
        assert_near(actual, wanted)


@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
def test_sum_rule_without_beta_writes_with_strength_one(backend):
    inputs = make_inputs(65)
    q, k, v, beta, state = inputs
    outputs = run("sum_rule", backend, q, k, v, None, state)
    expected = reference("sum_rule", q, k, v, torch.ones_like(beta), state)
    leaves = (q, k, v, state)
    for actual, wanted in zip(
        [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)],
        [*expected, *torch.autograd.grad(weighted_sum(*expected), leaves)],
        strict=True,
    ):
        assert_near(actual, wanted)


@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
def test_delta_rule_replaces_what_sum_rule_adds_up(backend):
    _, k, v, _, _ = (x.detach() for x in make_inputs(5))
    k, ones = k[:, :, :1].expand_as(k), torch.ones_like(k[..., 0])
    assert_near(run("delta_rule", backend, k, k, v, ones)[0], v, 1e-12)
    assert_near(run("sum_rule", backend, k, k, v, ones)[0], v.cumsum(2), 1e-12)


@pytest.mark.parametrize("backend", ["recurrent", "native"])
def test_fwm_rule_stays_in_the_unit_ball_after_the_first_write(backend):
    q, k, v, beta, _ = (x.detach() for x in make_inputs(30))
    v = 10 * v
    norms = torch.stack(
        [
            run("fwm_rule", backend, q[:, :, :t], k[:, :, :t], v[:, :, :t], beta[:, :, :t])[1].norm(
                dim=(-2, -1)
            )
            for t in range(1, 31)
        ]
    )
    assert (norms[0] > 1).all()
    assert (norms[1:] <= 1 + 1e-12).all()
    assert (norms[1] > 1 - 1e-12).all()
