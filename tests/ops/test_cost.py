"""Memory kept for the backward pass, and work as a function of length."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fwlight.ops import delta_rule, sum_rule
from tests.ops.discovery import (
    CASES,
    GATED,
    KERNELS,
    RULES,
    make_gates,
    make_inputs,
    run,
    weighted_sum,
)

each_case = pytest.mark.parametrize(("rule", "backend"), CASES)
each_kernel = pytest.mark.parametrize(("rule", "backend"), KERNELS)
each_choice = pytest.mark.parametrize("function", [sum_rule, delta_rule])


def numbers_saved(function, inputs, backend, **gates) -> int:
    """How many numbers autograd keeps between forward and backward, each storage counted once."""
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function(*inputs, **gates, backend=backend)
    assert result[1].requires_grad
    return sum(sizes.values())


@each_choice
@pytest.mark.parametrize("t", [512, 1024])
def test_chunk_keeps_its_arguments_and_one_state_a_chunk(function, t):
    inputs = [x.detach().float().requires_grad_() for x in make_inputs(t, d_key=32, d_value=16)]
    chunk = numbers_saved(function, inputs[:4], "chunk")
    heads, states = 2, 32 * 16 * (t // 64 + 1)
    assert chunk <= heads * (t * (32 + 32 + 16 + 1) + states)
    assert numbers_saved(function, inputs[:4], "recurrent") > heads * t * 32 * 16


@pytest.mark.parametrize("t", [512, 1024])
@pytest.mark.parametrize(("rule", "gates"), [(x[0], x[2]) for x in GATED if x[1] == "chunk"])
def test_chunk_keeps_gates_too_and_one_state_a_chunk(rule, gates, t):
    inputs = [x.detach().float().requires_grad_() for x in make_inputs(t, d_key=32, d_value=16)]
    given = make_gates(gates, t, d_key=32)
    given = {name: x.detach().float().requires_grad_() for name, x in given.items()}
    heads, states = 2, 32 * 16 * (t // 64 + 1)
    arguments = sum(x.numel() for x in (*inputs[:4], *given.values()))
    assert numbers_saved(RULES[rule], inputs[:4], "chunk", **given) <= arguments + heads * states


@each_case
def test_a_carried_state_keeps_nothing_else_alive(rule, backend):
    _, state = run(rule, backend, *(x.detach() for x in make_inputs(200)))
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


class CountNumbers(TorchDispatchMode):
    """Counts the numbers in the results of all operations, also in backward."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        if not func.is_view:
            self.total += sum(x.numel() for x in results if isinstance(x, torch.Tensor))
        return result


@each_kernel
def test_work_forward_and_backward_grows_linearly_with_length(rule, backend):
    totals = []
    for t in (256, 512, 1024) if backend == "chunk" else (32, 64, 128):
        inputs = make_inputs(t, h=1, d_key=4, d_value=4)
        with CountNumbers() as count:
            torch.autograd.grad(weighted_sum(*run(rule, backend, *inputs)), inputs)
        totals.append(count.total)
    assert totals[2] - totals[1] <= 2.1 * (totals[1] - totals[0])
