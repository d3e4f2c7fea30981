"""Several writes a token, read after the last: as if the others had queries that nobody reads."""

import pytest
import torch
from torch.nn.functional import pad

from fwlight.ops import delta_rule
from tests.ops.discovery import (
    CASES,
    GATED,
    assert_near,
    make_gates,
    make_inputs,
    needs_compiler,
    run,
    weighted_sum,
)

ALL = [*((rule, backend, ()) for rule, backend in CASES), *GATED]
each_choice = pytest.mark.parametrize(
    ("rule", "backend", "gates"),
    ALL,
    ids=lambda x: x if isinstance(x, str) else "+".join(f"{gate}[{dims}]" for gate, dims in x),
)


def make_writes(t: int, writes: int, gates=(), **sizes):
    """Inputs of which all but the queries have `writes` rows a token, and gates."""
    q = make_inputs(t, seed=5, **sizes)[0]
    given = {name: x for name, x in sizes.items() if name != "d_value"}
    return [q, *make_inputs(writes * t, **sizes)[1:]], make_gates(gates, writes * t, **given)


def spread(rule, q, *others, **gates):
    """Run the token loop with a query of zeros for every write but the last of a token."""
    writes = others[0].shape[2] // q.shape[2]
    queries = pad(q[:, :, :, None], (0, 0, writes - 1, 0)).flatten(2, 3)
    o, state = run(rule, "recurrent", queries, *others, **gates)
    return o[:, :, writes - 1 :: writes], state


@each_choice
@pytest.mark.parametrize(("t", "writes"), [(1, 2), (40, 2), (23, 3), (3, 17)])
def test_the_last_write_of_a_token_is_read(rule, backend, gates, t, writes):
    inputs, given = make_writes(t, writes, gates)
    outputs, expected = (
        run(rule, backend, *inputs, **given),
        spread(rule, *inputs, **given),
    )
    assert outputs[0].shape[2] == t
    leaves = [*inputs, *given.values()]
    for actual, wanted in zip(
        [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)],
        [*expected, *torch.autograd.grad(weighted_sum(*expected), leaves)],
        strict=True,
    ):
        assert_near(actual, wanted)
    with torch.no_grad():  # decoding has a path of its own
        for actual, wanted in zip(run(rule, backend, *inputs, **given), expected, strict=True):
            assert_near(actual, wanted)


@needs_compiler
@pytest.mark.parametrize("gates", [(), (("decay", "b h t"),), (("decay", "b h t k"),)], ids=str)
@pytest.mark.parametrize("threads", [1, 5])
def test_native_takes_writes_of_any_layout_in_slices(gates, threads):
    inputs, given = make_writes(90, 3, gates, h=1, d_key=33, d_value=80)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for change in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
            changed = {name: change(x) for name, x in given.items()}
            outputs = run("delta_rule", "native", *map(change, inputs), **changed)
            expected = spread("delta_rule", *inputs, **given)
            leaves = [*inputs, *given.values()]
            for actual, wanted in zip(
                [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)],
                [*expected, *torch.autograd.grad(weighted_sum(*expected), leaves)],
                strict=True,
            ):
                assert_near(actual, wanted)
    finally:
        torch.set_num_threads(before)


@each_choice
def test_parts_of_whole_tokens_with_carried_state_equal_the_whole(rule, backend, gates):
    inputs, given = make_writes(20, 3, gates)
    q, k, v, beta, state = (x.detach() for x in inputs)
    given = {name: x.detach() for name, x in given.items()}
    expected, last = run(rule, backend, q, k, v, beta, state, **given)
    outputs = []
    for start, end in ((0, 1), (1, 12), (12, 20)):
        part = [x[:, :, 3 * start : 3 * end] for x in (k, v, beta)]
        gated = {name: x[:, :, 3 * start : 3 * end] for name, x in given.items()}
        o, state = run(rule, backend, q[:, :, start:end], *part, state, **gated)
        outputs.append(o)
    assert_near(torch.cat(outputs, 2), expected)
    assert_near(state, last)


@needs_compiler
def test_operators_with_several_writes_pass_the_checks_of_torch():
    inputs, _ = make_writes(7, 3)
    operator = torch.ops.fwlight.native_rule.default
    torch.library.opcheck(operator, (*inputs, "delta", 0))


@pytest.mark.parametrize("tokens", [2, 4, 12, 0])
@pytest.mark.usefixtures("no_annotation_checks")
def test_writes_that_are_no_whole_number_a_token_are_refused(tokens):
    q = torch.zeros(1, 2, tokens, 5)
    with pytest.raises(ValueError, match=r"q has shape .* it must be \[1, 2, 9, 5\]"):
        delta_rule(q, *make_inputs(9)[1:4])
