"""Decays and erase keys: every choice of a rule's gates against the loop, and by its properties."""

import functools

import pytest
import torch
from torch import Tensor

from fwlight.ops import delta_rule
from tests.ops.discovery import (
    GATED,
    assert_near,
    gates_of,
    make_gates,
    make_inputs,
    reference,
    relative_error,
    run,
    weighted_sum,
)


def name_of(x) -> str | None:
    """Say what a choice of gates is, in a test's name."""
    return "+".join(f"{name}[{dims}]" for name, dims in x) if isinstance(x, tuple) else None


each_case = pytest.mark.parametrize(("rule", "backend", "gates"), GATED, ids=name_of)
KERNELS = [x for x in GATED if x[1] != "auto"]
each_kernel = pytest.mark.parametrize(("rule", "backend", "gates"), KERNELS, ids=name_of)
DECAYED = [x for x in KERNELS if "decay" in dict(x[2])]


def results(function, inputs: list[Tensor], gates: dict[str, Tensor]) -> list[Tensor]:
    """o and S_T of q, k, v, beta and perhaps a state, then the gradients of these and the gates."""
    outputs = function(*inputs, **gates)
    leaves = [*inputs, *gates.values()]
    return [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)]


def test_the_gates_of_both_rules_are_found():
    assert [len(gates_of(rule)) for rule in ("delta_rule", "sum_rule", "fwm_rule")] == [5, 2, 0]


@functools.cache
def expected_results(rule: str, gates, t: int, carried: bool) -> list[Tensor]:
    inputs = make_inputs(t) if carried else make_inputs(t)[:4]
    return results(functools.partial(reference, rule), inputs, make_gates(gates, t))


@each_kernel
@pytest.mark.parametrize("t", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
def test_gated_rule_equals_the_loop_in_values_and_gradients(rule, backend, gates, t, carried):
    inputs = make_inputs(t) if carried else make_inputs(t)[:4]
    found = results(functools.partial(run, rule, backend), inputs, make_gates(gates, t))
    for actual, wanted in zip(found, expected_results(rule, gates, t, carried), strict=True):
        assert actual.dtype == torch.float64
        assert_near(actual, wanted)


EXTREMES = ["single tokens", "single channels", "every token", "emptied", "emptied channels"]
EXTREME = [
    (*case, which)
    for case in DECAYED
    for which in EXTREMES
    if "channels" not in which or dict(case[2])["decay"] == "b h t k"
]


def set_extremes(decay: Tensor, which: str) -> Tensor:
    """Some logs of -20, after which nothing in float32 is left, or of -inf."""
    decay = decay.detach().clone()
    extreme = -torch.inf if "emptied" in which else -20.0
    if which == "every token":
        decay[:] = extreme
    elif "channels" in which:
        decay[:, :, ::5, 1::2] = extreme
    else:
        decay[:, :, ::7] = extreme
    return decay


@functools.cache
def extreme_inputs(gates, t: int, which: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    inputs = [x.detach().float() for x in make_inputs(t, d_key=12, d_value=9)]
    given = {name: x.detach() for name, x in make_gates(gates, t, d_key=12).items()}
    given["decay"] = set_extremes(given["decay"], which)
    return inputs, {name: x.float() for name, x in given.items()}


@functools.cache
def extreme_results(rule: str, backend: str, gates, t: int, which: str, dtype: torch.dtype):
    inputs, given = extreme_inputs(gates, t, which)
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    given = {name: x.to(dtype).requires_grad_() for name, x in given.items()}
    found = results(functools.partial(run, rule, backend), inputs, given)
    return found[: -len(given)], dict(zip(given, found[-len(given) :], strict=True))


@pytest.mark.parametrize("t", [1, 63, 64, 65, 300])
@pytest.mark.parametrize(("rule", "backend", "gates", "which"), EXTREME, ids=name_of)
def test_extreme_decays_stay_exact_in_float32(rule, backend, gates, t, which):
    found, of_gates = extreme_results(rule, backend, gates, t, which, torch.float32)
    wanted, of_gates_wanted = extreme_results(rule, "recurrent", gates, t, which, torch.float64)
    for actual, expected in zip(found, wanted, strict=True):
        assert actual.isfinite().all()
        assert_near(actual, expected, 1e-5)
    for name, actual in of_gates.items():
        assert actual.isfinite().all()
        assert_near(actual, of_gates_wanted[name], 1e-5)
    emptied = extreme_inputs(gates, t, which)[1]["decay"].isinf()
    assert (of_gates["decay"][emptied] == 0).all()


@each_kernel
def test_gated_rule_passes_gradcheck(rule, backend, gates):
    inputs, given = make_inputs(5, h=1, d_key=3, d_value=2), make_gates(gates, 5, h=1, d_key=3)

    def function(q, k, v, beta, state, *values):
        return run(rule, backend, q, k, v, beta, state, **dict(zip(given, values, strict=True)))

    assert torch.autograd.gradcheck(function, [*inputs, *given.values()])


@each_kernel
@pytest.mark.parametrize("part", ["output", "state"])
def test_gated_rule_gradients_from_one_result_alone(rule, backend, gates, part):
    inputs, given = make_inputs(70), make_gates(gates, 70)
    leaves = [*(inputs if part == "output" else inputs[1:]), *given.values()]
    found = []
    for function in (functools.partial(run, rule, backend), functools.partial(reference, rule)):
        o, state = function(*inputs, **given)
        parts = (o, 0 * state) if part == "output" else (None, state)
        found.append(torch.autograd.grad(weighted_sum(*parts), leaves))
    for actual, wanted in zip(*found, strict=True):
        assert_near(actual, wanted)


@each_kernel
def test_gated_writing_without_queries_gives_the_same_state_and_gradients(rule, backend, gates):
    inputs, given = make_inputs(70), make_gates(gates, 70)
    leaves = [*inputs[1:], *given.values()]
    found = []
    for q in (inputs[0], None):
        o, state = run(rule, backend, q, *inputs[1:], **given)
        assert (o is None) == (q is None)
        found.append([state, *torch.autograd.grad(weighted_sum(None, state), leaves)])
    for actual, wanted in zip(*found, strict=True):
        assert_near(actual, wanted, 1e-12)


@each_case
@pytest.mark.parametrize("cuts", [[1], [50], [64], range(1, 70)], ids=["1", "50", "64", "steps"])
def test_gated_parts_with_carried_state_equal_the_whole(rule, backend, gates, cuts):
    t = 130 if len(cuts) == 1 else 70
    inputs, given = make_inputs(t), make_gates(gates, t)

    def in_parts(*inputs, **given):
        *tokens, state = inputs
        outputs = []
        for start, stop in zip([0, *cuts], [*cuts, t], strict=True):
            part = [x[:, :, start:stop] for x in tokens]
            part_given = {name: x[:, :, start:stop] for name, x in given.items()}
            o, state = run(rule, backend, *part, state, **part_given)
            outputs.append(o)
        return torch.cat(outputs, 2), state

    whole = results(functools.partial(run, rule, backend), inputs, given)
    for actual, wanted in zip(results(in_parts, inputs, given), whole, strict=True):
        assert_near(actual, wanted)


@each_kernel
@pytest.mark.parametrize("t", [0, 40, 64, 99])
def test_future_tokens_and_gates_change_no_output(rule, backend, gates, t):
    *tokens, state = (x.detach() for x in make_inputs(100))
    given = {name: x.detach() for name, x in make_gates(gates, 100).items()}
    before, _ = run(rule, backend, *tokens, state, **given)
    changed = [x.clone() for x in tokens]
    changed_gates = {name: x.clone() for name, x in given.items()}
    for x in (*changed, *changed_gates.values()):
        x[:, :, t + 1 :] -= 3.0
    after, _ = run(rule, backend, *changed, state, **changed_gates)
    assert_near(after[:, :, : t + 1], before[:, :, : t + 1], 1e-12)
    for name in given:
        changed_gates = {name: x.clone() for name, x in given.items()}
        changed_gates[name][:, :, t] -= 1.0
        after, _ = run(rule, backend, *tokens, state, **changed_gates)
        assert relative_error(after[:, :, t], before[:, :, t]) > 1e-3


@pytest.mark.parametrize(("rule", "backend", "gates"), DECAYED, ids=name_of)
@pytest.mark.parametrize("cut", [1, 30, 64, 99])
def test_a_boundary_by_infinite_decay_runs_sequences_apart(rule, backend, gates, cut):
    inputs, given = make_inputs(100)[:4], make_gates(gates, 100)
    bounded = given | {"decay": given["decay"].detach().clone()}
    bounded["decay"][:, :, cut] = -torch.inf
    bounded["decay"].requires_grad_()

    def apart(*inputs, **given):
        first, second = (
            run(
                rule,
                backend,
                *(x[:, :, part] for x in inputs),
                **{name: x[:, :, part] for name, x in given.items()},
            )
            for part in (slice(None, cut), slice(cut, None))
        )
        return torch.cat([first[0], second[0]], 2), second[1]

    found = results(functools.partial(run, rule, backend), inputs, bounded)
    for actual, wanted in zip(found, results(apart, inputs, given), strict=True):
        assert_near(actual, wanted)


@each_kernel
@pytest.mark.parametrize(("d_key", "d_value"), [(1, 1), (3, 40), (33, 17)])
def test_gated_rule_takes_any_sizes_layouts_and_batches(rule, backend, gates, d_key, d_value):
    sizes = {"b": 2, "h": 3, "d_key": d_key}
    inputs, given = make_inputs(40, d_value=d_value, **sizes), make_gates(gates, 40, **sizes)
    wanted = results(functools.partial(reference, rule), inputs, given)
    for change in (Tensor.contiguous, lambda x: x.mT.contiguous().mT):
        outputs = run(
            rule, backend, *map(change, inputs), **{n: change(x) for n, x in given.items()}
        )
        leaves = [*inputs, *given.values()]
        found = [*outputs, *torch.autograd.grad(weighted_sum(*outputs), leaves)]
        for actual, expected in zip(found, wanted, strict=True):
            assert_near(actual, expected)


@each_kernel
def test_gates_that_do_nothing_change_nothing(rule, backend, gates):
    inputs = make_inputs(70)
    given = {
        name: inputs[1] if name == "erase_key" else torch.zeros_like(x)
        for name, x in make_gates(gates, 70).items()
    }
    found = run(rule, backend, *inputs, **given)
    expected = run(rule, backend, *inputs)
    for actual, wanted in zip(
        [*found, *torch.autograd.grad(weighted_sum(*found), inputs)],
        [*expected, *torch.autograd.grad(weighted_sum(*expected), inputs)],
        strict=True,
    ):
        assert_near(actual, wanted)


@each_case
def test_gates_of_no_tokens_and_no_batch(rule, backend, gates):
    *tokens, state = make_inputs(0)
    o, last = run(rule, backend, *tokens, state, **make_gates(gates, 0))
    assert o.shape == (1, 2, 0, 7)
    assert torch.equal(last, state)
    inputs, given = make_inputs(70, b=0), make_gates(gates, 70, b=0)
    found = results(functools.partial(run, rule, backend), inputs, given)
    assert found[1].shape == (0, 2, 5, 7)


@each_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_in_half_precision_are_computed_in_float32(rule, backend, gates, dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in make_inputs(70)]
    given = {n: x.detach().to(dtype).requires_grad_() for n, x in make_gates(gates, 70).items()}
    o, state = run(rule, backend, *inputs, **given)
    wanted = run(
        rule, backend, *(x.float() for x in inputs), **{n: x.float() for n, x in given.items()}
    )
    assert torch.equal(o, wanted[0].to(dtype))
    assert torch.equal(state, wanted[1])
    gradients = torch.autograd.grad(weighted_sum(o.float(), state), list(given.values()))
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("gate", "shape", "wanted"),
    [
        ("decay", (1, 2, 9, 1), "must be [1, 2, 9] or [1, 2, 9, 5]"),
        ("decay", (1, 2, 8), "must be [1, 2, 9] or [1, 2, 9, 5]"),
        ("erase_key", (1, 2, 9), "must be [1, 2, 9, 5]"),
    ],
)
@pytest.mark.usefixtures("no_annotation_checks")
def test_shape_errors_of_gates_name_all_shapes(gate, shape, wanted):
    with pytest.raises(ValueError, match="must be") as error:
        delta_rule(*make_inputs(9)[:4], **{gate: torch.zeros(shape)})
    assert f"{gate} has shape {list(shape)}" in str(error.value)
    assert wanted in str(error.value)


@pytest.mark.parametrize(
    ("rule", "gates"), [(x[0], x[2]) for x in GATED if x[1] == "chunk"], ids=name_of
)
def test_second_derivatives_under_gates_are_refused_by_chunk(rule, gates):
    inputs = make_inputs(5)
    loss = weighted_sum(*run(rule, "chunk", *inputs, **make_gates(gates, 5))) ** 2
    with pytest.raises(RuntimeError, match="use backend='recurrent'"):
        torch.autograd.grad(loss, inputs[:4], create_graph=True)
