"""The native back end under gates, beyond its mathematics."""

import pytest
import torch

from fwlight.ops import native
from tests.ops.discovery import (
    GATED,
    assert_near,
    make_gates,
    make_inputs,
    needs_compiler,
    run,
    weighted_sum,
)

each_gated = pytest.mark.parametrize(
    ("name", "gates"),
    [(rule, gates) for rule, backend, gates in GATED if backend == "native"],
    ids=lambda x: "+".join(gate for gate, _ in x) if isinstance(x, tuple) else x,
)


@needs_compiler
@each_gated
@pytest.mark.parametrize(
    ("sizes", "threads"), [((1, 1), 1), ((48, 17), 2), ((33, 80), 5), ((24, 70), 3)]
)
def test_gates_of_any_sizes_layouts_and_threads_agree_with_recurrent(name, gates, sizes, threads):
    """Of more than one group of chunks, cut into slices of columns where threads are free."""
    inputs = make_inputs(270, h=1, d_key=sizes[0], d_value=sizes[1])
    given = make_gates(gates, 270, h=1, d_key=sizes[0])
    before = torch.get_num_threads()

    def results(backend, change, n):
        torch.set_num_threads(n)
        changed = {gate: change(x) for gate, x in given.items()}
        outputs = run(name, backend, *map(change, inputs), **changed)
        torch.set_num_threads(max(n - 1, 1))  # the backward pass may have others
        leaves = [*inputs, *given.values()]
        return [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)]

    try:
        expected = results("recurrent", torch.clone, 1)
        for change in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
            found, again = (results("native", change, threads) for _ in range(2))
            for actual, repeated, wanted in zip(found, again, expected, strict=True):
                assert torch.equal(actual, repeated)
                assert_near(actual, wanted)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@each_gated
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("used", ["o", "state", "both"])
@pytest.mark.parametrize("t", [1, 3, 17, 600])
def test_under_gates_no_state_is_a_state_of_zeros(name, gates, reads, used, t):
    if used == "o" and not reads:
        return
    *inputs, state = make_inputs(t, d_key=20, d_value=18)
    given = make_gates(gates, t, d_key=20)
    q, *written = inputs
    results = []
    for initial in (None, torch.zeros_like(state)):
        arguments = (q if reads else None, *written, initial)
        o, last = run(name, "native", *arguments, **given)
        loss = weighted_sum(o if used != "state" else None, last if used != "o" else last[:0])
        leaves = [*(inputs if reads and used != "state" else written), *given.values()]
        results.append([o, last, *torch.autograd.grad(loss, leaves)])
        with torch.no_grad():  # decoding has a path of its own
            results[-1] += run(name, "native", *arguments, **given)
    for actual, wanted in zip(*results, strict=True):
        if wanted is not None:
            assert_near(actual, wanted, 1e-12)


@needs_compiler
@each_gated
@pytest.mark.parametrize("reads", [True, False])
def test_operators_under_gates_pass_the_checks_of_torch(name, gates, reads):
    q, k, v, beta, state = make_inputs(20)
    given = make_gates(gates, 20)
    values = [given.get(gate) for gate in ("decay", "erase_key")]
    inputs = (q if reads else None, k, v, beta, state if reads else None)
    operator = torch.ops.fwlight.native_rule.default
    rule = name.removesuffix("_rule")
    torch.library.opcheck(operator, (*inputs, rule, 0, *values))
    kept = [None if x is None else x.detach() for x in (*inputs, *values)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, (*kept[:5], rule, 1, *kept[5:]), test_utils=tests)


@needs_compiler
@each_gated
def test_a_state_is_written_over_under_gates_too(name, gates):
    inputs = [x.detach().float() for x in make_inputs(1)]
    given = {gate: x.detach().float() for gate, x in make_gates(gates, 1).items()}
    expected_o, expected = run(name, "native", *inputs, **given)
    with native.overwriting_states():
        o, new = run(name, "native", *inputs, **given)
    assert new.data_ptr() == inputs[4].data_ptr()
    assert torch.equal(o, expected_o)
    assert torch.equal(new, expected)
