"""The native back end beyond its mathematics: sizes, layouts, threads, and torch's view."""

import json
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fwlight.ops import delta_rule, fwm_rule, native, sum_rule
from tests.ops.discovery import assert_near, make_inputs, needs_compiler, weighted_sum

ROOT = Path(__file__).resolve().parents[2]
each_rule = pytest.mark.parametrize("rule", [sum_rule, delta_rule, fwm_rule])


@needs_compiler
@pytest.mark.parametrize("sizes", [(1, 1), (3, 40), (16, 16), (48, 17), (33, 80)])
@each_rule
def test_any_sizes_and_layouts_agree_with_recurrent(rule, sizes):
    inputs = make_inputs(90, b=2, h=3, d_key=sizes[0], d_value=sizes[1])
    q, k, v, beta, state = inputs
    # Heads before tokens, strides in the last dimension, one value for many tokens.
    variants = [
        [x.contiguous() for x in inputs],
        [q.mT.contiguous().mT, k, v.mT.contiguous().mT, beta, state.mT.contiguous().mT],
        [q, k, v[:, :, :1].expand_as(v), beta[:, :, :1].expand_as(beta), state],
        [q.repeat_interleave(2, 2)[:, :, ::2], k, v, beta, state],
    ]
    for arguments in variants:
        *tokens, initial = arguments
        outputs = rule(*tokens, initial_state=initial, backend="native")
        expected = rule(*tokens, initial_state=initial, backend="recurrent")
        for actual, wanted in zip(
            [*outputs, *torch.autograd.grad(weighted_sum(*outputs), inputs)],
            [*expected, *torch.autograd.grad(weighted_sum(*expected), inputs)],
            strict=True,
        ):
            assert_near(actual, wanted)


@needs_compiler
@each_rule
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_inside_a_head_agree_and_repeat_bit_for_bit(rule, threads):
    inputs = make_inputs(70, h=1, d_key=24, d_value=70)
    before = torch.get_num_threads()

    def results(n):
        torch.set_num_threads(n)
        outputs = rule(*inputs[:4], initial_state=inputs[4], backend="native")
        return [*outputs, *torch.autograd.grad(weighted_sum(*outputs), inputs)]

    try:
        first, again, single = results(threads), results(threads), results(1)
    finally:
        torch.set_num_threads(before)
    for actual, repeated, wanted in zip(first, again, single, strict=True):
        assert torch.equal(actual, repeated)
        assert_near(actual, wanted, 1e-12)


@needs_compiler
@each_rule
@pytest.mark.parametrize("threads", [(1, 3), (3, 1), (2, 5)])
def test_the_backward_pass_may_have_other_threads_than_the_forward_pass(rule, threads):
    inputs = make_inputs(70, h=1, d_key=24, d_value=70)
    expected = rule(*inputs[:4], initial_state=inputs[4], backend="recurrent")
    wanted = torch.autograd.grad(weighted_sum(*expected), inputs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads[0])
        outputs = rule(*inputs[:4], initial_state=inputs[4], backend="native")
        torch.set_num_threads(threads[1])
        found = torch.autograd.grad(weighted_sum(*outputs), inputs)
    finally:
        torch.set_num_threads(before)
    for actual, other in zip(found, wanted, strict=True):
        assert_near(actual, other, 1e-12)


@needs_compiler
@each_rule
def test_half_precision_comes_back_with_a_float32_state(rule):
    inputs = [x.detach().bfloat16().requires_grad_() for x in make_inputs(50)[:4]]
    o, state = rule(*inputs, backend="native")
    expected, expected_state = rule(*(x.float() for x in inputs), backend="recurrent")
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert_near(o, expected, 1e-2)
    assert_near(state, expected_state, 1e-6)
    gradients = torch.autograd.grad(weighted_sum(o.float(), state), inputs)
    assert all(g.dtype == torch.bfloat16 for g in gradients)


@needs_compiler
@each_rule
def test_second_derivatives_are_refused(rule):
    inputs = make_inputs(5)
    loss = weighted_sum(*rule(*inputs[:4], backend="native")) ** 2
    with pytest.raises(RuntimeError, match="use backend='recurrent'"):
        torch.autograd.grad(loss, inputs[:4], create_graph=True)


@needs_compiler
@each_rule
def test_backward_keeps_memory_in_proportion_to_the_arguments(rule):
    b, h, t, d_key, d_value = 1, 2, 4096, 128, 64
    inputs = [x.detach().float() for x in make_inputs(t, h=h, d_key=d_key, d_value=d_value)[:4]]
    inputs = [x.requires_grad_() for x in inputs]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x
    ):
        rule(*inputs, backend="native")
    added = sum(x.numel() for p, x in kept.items() if p not in {y.data_ptr() for y in inputs})
    assert added < 0.5 * b * h * t * 2 * (d_key + d_value)


@needs_compiler
@each_rule
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("used", ["o", "state", "both"])
@pytest.mark.parametrize("t", [1, 3, 16, 17, 100, 600])
def test_no_state_is_a_state_of_zeros(rule, reads, used, t):
    if used == "o" and not reads:
        return
    # 600 tokens: more chunks than one state is kept for.
    *inputs, state = make_inputs(t, d_key=20, d_value=18)
    q, *written = inputs
    zeros = torch.zeros_like(state)
    results = []
    for initial in (None, zeros):
        o, last = rule(q if reads else None, *written, initial_state=initial, backend="native")
        loss = weighted_sum(o if used != "state" else None, last if used != "o" else last[:0])
        leaves = inputs if reads and used != "state" else written
        results.append([o, last, *torch.autograd.grad(loss, leaves)])
        with torch.no_grad():  # decoding has a path of its own
            read = rule(q if reads else None, *written, initial_state=initial, backend="native")
        results[-1] += read
    for actual, wanted in zip(*results, strict=True):
        if wanted is not None:
            assert_near(actual, wanted, 1e-13)


@needs_compiler
@each_rule
@pytest.mark.parametrize("reads", [True, False])
def test_operators_pass_the_checks_of_torch(rule, reads):
    q, k, v, beta, state = make_inputs(20)
    name = rule.__name__.removesuffix("_rule")
    state = state if reads or name == "fwm" else None
    arguments = (q if reads else None, k, v, beta, state, name)
    torch.library.opcheck(torch.ops.fwlight.native_rule.default, (*arguments, 0))
    kept = [None if x is None else x.detach() for x in arguments[:5]]
    tests = ("test_schema", "test_faketensor")
    operator = torch.ops.fwlight.native_rule.default
    torch.library.opcheck(operator, (*kept, name, 1), test_utils=tests)


@needs_compiler
@each_rule
def test_a_transform_of_torch_func_is_refused_in_words(rule):
    q, *others = (x.detach() for x in make_inputs(5))
    with pytest.raises(RuntimeError, match="with functorch transforms"):
        torch.func.grad(lambda x: rule(x, *others[:3])[0].sum())(q)


COMPILE = """
import json, sys
import torch
from fwlight import ops
from tests.ops.discovery import assert_near, make_gates, make_inputs, weighted_sum

def check(name, backend, gates):
    rule = getattr(ops, name)

    def function(q, k, v, beta, state, *values):
        given = dict(zip(gates, values))
        o, last = rule(q, k, v, beta, **given, initial_state=state, backend=backend)
        return o + rule(q, k, v, beta, **given, backend=backend)[0], last

    def results(function, inputs):
        outputs = function(*inputs)
        return [*outputs, *torch.autograd.grad(weighted_sum(*outputs), inputs)]

    compiled = torch.compile(function, fullgraph=True)
    for t in (40, 50, 60):  # after the first change of a size it becomes a symbol
        inputs = [*make_inputs(t), *make_gates(gates.items(), t).values()]
        found, wanted = results(compiled, inputs), results(function, inputs)
        for actual, expected in zip(found, wanted, strict=True):
            assert_near(actual, expected)

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return function(*arguments)

    detached = tuple(x.detach() for x in inputs)
    exported = torch.export.export(Module(), detached)
    program = exported.graph_module.print_readable(print_output=False)
    assert ("fwlight.native_rule" in program) == (backend != "chunk")
    assert_near(exported.module()(*detached)[0], function(*inputs)[0])

for case in json.loads(sys.argv[1]):
    print(case, file=sys.stderr)
    torch.compiler.reset()
    check(*case)
"""
ERASING = {"decay": "b h t", "erase_key": "b h t k"}
COMPILED = {
    "native": [
        *(("sum_rule", "auto", {}), ("delta_rule", "native", {}), ("fwm_rule", "auto", {})),
        ("delta_rule", "native", ERASING),
    ],
    "chunk": [("delta_rule", "chunk", {}), ("sum_rule", "chunk", {"decay": "b h t"})],
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", pytest.param("chunk", marks=pytest.mark.full)])
def test_compiled_and_exported_programs_hold_the_operator(kind):
    # In a process of its own: the checks of annotations under pytest cannot be compiled.
    command = [sys.executable, "-c", COMPILE, json.dumps(COMPILED[kind])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_a_gradient_through_a_chain_of_states_needs_no_outputs():
    q, k, v, beta, _ = make_inputs(33)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = delta_rule(None, k, v, beta, backend="native")
        o, last = delta_rule(q, k, v, beta, initial_state=state, backend="native")
    gradients = torch.autograd.grad(o.sum() + 0 * last.sum(), (k, v, beta))
    _, state = delta_rule(None, k, v, beta, backend="recurrent")
    o, _ = delta_rule(q, k, v, beta, initial_state=state, backend="recurrent")
    expected = torch.autograd.grad(o.sum(), (k, v, beta))
    for actual, wanted in zip(gradients, expected, strict=True):
        assert_near(actual, wanted)


@needs_compiler
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_fwm_stays_accurate_over_long_sequences_in_float32(size):
    q, k, v, beta, _ = make_inputs(500, d_key=32, d_value=20)
    single = [x.detach().float() for x in (q, k, size * v, beta)]
    single = [x.requires_grad_() for x in single]
    double = [x.detach().double().requires_grad_() for x in single]
    outputs = fwm_rule(*single, backend="native")
    expected = fwm_rule(*double, backend="recurrent")
    for actual, wanted in zip(
        [*outputs, *torch.autograd.grad(weighted_sum(*outputs), single)],
        [*expected, *torch.autograd.grad(weighted_sum(*expected), double)],
        strict=True,
    ):
        assert_near(actual, wanted, 1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fwm_measures_a_memory_that_a_write_erases(dtype):
    # 3 under one key unprojected, then nothing, exactly zero again; then 2, unprojected too.
    k = torch.eye(4, dtype=dtype)[0].expand(1, 1, 5, 4)
    v = torch.tensor([3.0, 0.0, 2.0, 1000.0, 0.25], dtype=dtype)[:, None].expand(1, 1, 5, 3)
    ones = torch.ones(1, 1, 5, dtype=dtype)
    for t in range(1, 6):
        inputs = k[:, :, :t], k[:, :, :t], v[:, :, :t], ones[:, :, :t]
        o, state = fwm_rule(*inputs, backend="native")
        expected, last = fwm_rule(*inputs, backend="recurrent")
        assert_near(o, expected, 1e-6)
        assert_near(state, last, 1e-6)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flushed on x86 only")
@pytest.mark.parametrize("rule", [delta_rule, fwm_rule])
def test_what_is_left_of_an_old_write_never_becomes_a_slow_number(rule):
    # 0.5^140 has a float32, but one without the leading bit, with which processors are slow.
    k, v = torch.ones(1, 1, 141, 1), torch.zeros(1, 1, 141, 1)
    v[..., 0, :] = 1.0
    beta = torch.full((1, 1, 141), 0.5)
    for backend, left in (("recurrent", 0.5**141), ("native", 0.0)):
        state = rule(None, k, v, beta, backend=backend)[1]
        assert state.double().item() == pytest.approx(left, rel=1e-2)
    tiny = torch.full((4,), 2.0**-126) * 2.0**-10
    assert (tiny > 0).all()  # other operators of this thread keep such numbers


@needs_compiler
@each_rule
@pytest.mark.parametrize("t", [1, 5, 40])
@pytest.mark.parametrize(("heads", "threads"), [(2, 1), (1, 5)])
def test_a_state_is_written_over_where_asked_and_nowhere_else(rule, t, heads, threads) -> None:
    inputs = (x.detach().float() for x in make_inputs(t, h=heads, d_value=70))
    q, k, v, beta, state = inputs
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # more than heads: each is cut into slices
    try:
        expected_o, expected = rule(q, k, v, beta, initial_state=state)
        kept, apart = state.clone(), state.mT.contiguous().mT
        tracked = state.clone().requires_grad_()
        with native.overwriting_states():
            rule(q, k, v, beta, initial_state=tracked)[1].sum().backward()
            with torch.no_grad():
                rule(q, k, v, beta, initial_state=tracked)
            found = rule(q, k, v, beta, initial_state=apart)
            o, new = rule(q, k, v, beta, initial_state=kept)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(tracked, state)
    assert torch.equal(apart, state)
    assert torch.equal(found[1], expected)
    assert new.data_ptr() == kept.data_ptr()
    assert torch.equal(o, expected_o)
    assert torch.equal(new, expected)
    assert rule(q, k, v, beta, initial_state=kept)[1].data_ptr() != kept.data_ptr()
