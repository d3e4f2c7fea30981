"""What surrounds the mathematics: awkward arguments, errors and the back-end choice."""

import sys
import warnings

import pytest
import torch

from fwlight.ops import backends, delta_rule, fwm_rule, sum_rule
from fwlight.ops.native import door
from tests.ops.discovery import CASES, RULES, assert_near, make_inputs, run, weighted_sum

each_case = pytest.mark.parametrize(("rule", "backend"), CASES)
each_choice = pytest.mark.parametrize("function", [sum_rule, delta_rule])


@each_case
def test_no_tokens_leave_the_state_unchanged(rule, backend):
    *tokens, state = make_inputs(0)
    o, last = run(rule, backend, *tokens, state)
    assert o.shape == (1, 2, 0, 7)
    assert torch.equal(last, state)
    assert torch.equal(run(rule, backend, None, *tokens[1:])[1], torch.zeros_like(state))
    assert run(rule, backend, None, *tokens[1:], state)[0] is None


@each_case
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
def test_results_of_no_tokens_are_differentiable_by_all_arguments(rule, backend, carried):
    *tokens, state = make_inputs(0)
    leaves = [*tokens, state] if carried else tokens
    o, last = run(rule, backend, *leaves)
    torch.autograd.grad(o.sum(), leaves, retain_graph=True)
    gradients = torch.autograd.grad(weighted_sum(o, last), leaves)
    assert [g.shape for g in gradients] == [x.shape for x in leaves]
    if carried:
        weights = torch.linspace(-1, 1.5, state.numel(), dtype=torch.float64).view(state.shape)
        assert torch.equal(gradients[-1], weights)


@each_case
def test_an_empty_batch_has_empty_results(rule, backend):
    inputs = make_inputs(70, b=0)
    o, state = run(rule, backend, *inputs)
    assert (o.shape, state.shape) == ((0, 2, 70, 7), (0, 2, 5, 7))
    assert all(g.numel() == 0 for g in torch.autograd.grad(weighted_sum(o, state), inputs))


@each_case
def test_arguments_are_not_modified(rule, backend):
    inputs = [x.detach() for x in make_inputs(70)]
    copies = [x.clone() for x in inputs]
    run(rule, backend, *inputs)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(
    ("position", "shape", "parts"),
    [
        (0, (1, 2, 8, 5), ["q has shape [1, 2, 8, 5]", "[1, 2, 9, 5]"]),
        (1, (1, 2, 9), ["not [1, 2, 9] and [1, 2, 9, 7]"]),
        (2, (1, 2, 8, 7), ["not [1, 2, 9, 5] and [1, 2, 8, 7]"]),
        (3, (1, 2, 9, 1), ["beta has shape [1, 2, 9, 1]", "must be [1, 2, 9]"]),
        (4, (1, 2, 7, 5), ["initial_state has shape [1, 2, 7, 5]", "must be [1, 2, 5, 7]"]),
    ],
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("no_annotation_checks")
def test_shape_errors_name_both_shapes(rule, position, shape, parts):
    inputs = make_inputs(9)
    inputs[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be") as error:
        run(rule, "auto", *inputs)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("position", range(5), ids=["q", "k", "v", "beta", "initial_state"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("t", [0, 9])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("no_annotation_checks")
def test_what_holds_no_floating_point_numbers_is_refused_by_name(rule, t, dtype, position):
    inputs = [x.detach().float() for x in make_inputs(t)]
    inputs[position] = inputs[position].to(dtype)
    name = ["q", "k", "v", "beta", "initial_state"][position]
    told = f"{name} is {str(dtype).removeprefix('torch.')}; associations are floating-point"
    with pytest.raises(ValueError, match=told):
        run(rule, "auto", *inputs)


@each_case
@pytest.mark.filterwarnings("ignore:backend='native' cannot run here")
@pytest.mark.parametrize("t", [0, 2, 70])
def test_without_numbers_shapes_come_out(rule, backend, t):
    inputs = [x.detach().to("meta").requires_grad_() for x in make_inputs(t)]
    o, state = run(rule, backend, *inputs)
    assert (o.shape, state.shape) == ((1, 2, t, 7), (1, 2, 5, 7))
    assert o.is_meta
    gradients = torch.autograd.grad((o, state), inputs, (torch.empty_like(o), state))
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


@each_case
def test_under_a_transform_of_torch_func_recurrent_runs_and_others_name_it(rule, backend):
    *tokens, state = (torch.stack([x.detach(), -x.detach()]) for x in make_inputs(5))

    def loss(q, k, v, beta, S):
        return weighted_sum(*run(rule, backend, q, k, v, beta, S))

    transformed = torch.vmap(torch.func.grad(loss))
    if backend != "recurrent":
        for function in (transformed, torch.vmap(loss)):
            with pytest.raises(RuntimeError, match=r"functorch .*; use backend='recurrent'"):
                function(*tokens, state)
        return
    found = transformed(*tokens, state)
    for i in range(2):
        leaves = [x[i].clone().requires_grad_() for x in (*tokens, state)]
        assert_near(found[i], torch.autograd.grad(loss(*leaves), leaves)[0])


@each_choice
def test_unknown_backend_error_lists_the_choices(function):
    inputs = make_inputs(3)[:4]
    with pytest.raises(ValueError, match="'chunky' is none of auto, native, fla, chunk, recurrent"):
        function(*inputs, backend="chunky")


@each_choice
def test_second_derivatives_are_refused_by_chunk_and_given_by_recurrent(function):
    inputs = make_inputs(5)
    loss = weighted_sum(*function(*inputs[:4], backend="chunk")) ** 2
    with pytest.raises(RuntimeError, match="use backend='recurrent'"):
        torch.autograd.grad(loss, inputs[:4], create_graph=True)
    loss = weighted_sum(*function(*inputs[:4], backend="recurrent")) ** 2
    (gradient,) = torch.autograd.grad(loss, inputs[1], create_graph=True)
    assert torch.autograd.grad(gradient.sum(), inputs[2])[0].abs().max() > 0


@each_choice
@pytest.mark.parametrize("compiled", [True, False])
def test_auto_chooses_by_length_and_what_can_run(function, compiled, monkeypatch):
    used = []
    module = sys.modules[function.__module__]
    kernels = {x.name: x.run for x in module.BACKENDS}

    def watched(name):
        return lambda *a: used.append(name) or kernels["chunk"](*a)

    watching = tuple(x._replace(run=watched(x.name)) for x in module.BACKENDS)
    monkeypatch.setattr(module, "BACKENDS", watching)
    reason = None if compiled else "no compiler"
    monkeypatch.setattr(door, "build_obstacle", lambda *_: reason)
    monkeypatch.setattr(backends, "_warn_once", used.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (1, 64):
            *inputs, state = make_inputs(t)
            function(*inputs, initial_state=state)
    told = "backend='native' cannot run here (no compiler); using backend='chunk'"
    assert used == (["native"] * 2 if compiled else [told, "recurrent", told, "chunk"])


def test_without_a_chunkwise_form_recurrent_is_what_runs_anywhere(monkeypatch):
    told = []
    monkeypatch.setattr(door, "build_obstacle", lambda *_: "no compiler")
    monkeypatch.setattr(backends, "_warn_once", told.append)
    inputs = make_inputs(64)[:4]
    expected, _ = fwm_rule(*inputs, backend="recurrent")
    assert torch.equal(fwm_rule(*inputs)[0], expected)
    assert told == ["backend='native' cannot run here (no compiler); using backend='recurrent'"]
    with pytest.raises(ValueError, match="'chunk' is none of auto, native, recurrent"):
        fwm_rule(*inputs, backend="chunk")


@each_choice
def test_a_list_is_asked_in_its_order(function, monkeypatch):
    told, obstacles = [], dict.fromkeys(["native", "fla", "chunk"], "busy")
    module = sys.modules[function.__module__]
    occupied = tuple(
        x._replace(obstacle=lambda *_, name=x.name: obstacles.get(name)) for x in module.BACKENDS
    )
    monkeypatch.setattr(module, "BACKENDS", occupied)
    monkeypatch.setattr(backends, "_warn_once", told.append)
    inputs = make_inputs(64)[:4]
    expected, _ = function(*inputs, backend="recurrent")
    assert torch.equal(function(*inputs)[0], expected)
    assert told == []
    for name in obstacles:
        assert torch.equal(function(*inputs, backend=name)[0], expected)
        assert told.pop() == f"backend={name!r} cannot run here (busy); using backend='recurrent'"
    del obstacles["chunk"]
    assert not torch.equal(function(*inputs)[0], expected)
    function(*inputs, backend="native")
    assert told == ["backend='native' cannot run here (busy); using backend='chunk'"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_case
def test_rule_on_cuda_equals_the_cpu(rule, backend):
    inputs = make_inputs(130)
    on_device = [x.detach().cuda().requires_grad_() for x in inputs]
    outputs, expected = run(rule, backend, *on_device), run(rule, backend, *inputs)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_near(actual.cpu(), wanted)
