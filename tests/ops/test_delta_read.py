"""One read of a delta memory that is never formed, against the memory of tests/reference.py."""

import pytest
import torch
from torch import Tensor

from fwlight.ops import delta_read_weights
from tests.ops.discovery import (
    assert_near,
    make_inputs,
    needs_compiler,
    reference,
    weighted_sum,
)

BACKENDS = ["auto", "native", "recurrent", "chunk"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def make_read(t: int, **sizes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One query, keys, values and strengths; float64 leaves."""
    q, k, v, beta, _ = make_inputs(t + 1, **sizes)
    q, k, v, beta = q[:, :, 0], k[:, :, 1:], v[:, :, 1:], beta[:, :, 1:]
    q, k, v, beta = (x.detach().requires_grad_() for x in (q, k, v, beta))
    return q, k, v, beta


@each_backend
@pytest.mark.parametrize("t", [1, 2, 70, 200])
@pytest.mark.parametrize(("d_key", "b", "h"), [(5, 1, 2), (33, 2, 3)])
def test_weighted_values_are_what_the_memory_returns(backend, t, d_key, b, h):
    q, k, v, beta = inputs = make_read(t, b=b, h=h, d_key=d_key)
    _, state = reference("delta_rule", torch.zeros_like(k), k, v, beta)
    expected = (q[..., None, :] @ state)[..., 0, :]
    o = (delta_read_weights(q, k, beta, backend=backend)[..., None, :] @ v)[..., 0, :]
    assert_near(o, expected)
    for actual, wanted in zip(
        torch.autograd.grad(weighted_sum(None, o), inputs),
        torch.autograd.grad(weighted_sum(None, expected), inputs),
        strict=True,
    ):
        assert_near(actual, wanted)


@each_backend
def test_weights_pass_gradcheck(backend):
    q, k, _, beta = make_read(5, d_key=3)
    assert torch.autograd.gradcheck(
        lambda *inputs: delta_read_weights(*inputs, backend=backend), (q, k, beta)
    )


@each_backend
def test_no_tokens_have_no_weights(backend):
    q, k, _, beta = make_read(0)
    assert delta_read_weights(q, k, beta, backend=backend).shape == (1, 2, 0)


@each_backend
def test_long_repeated_keys_stay_accurate_in_float32(backend):
    q, k, _, beta = make_read(500, d_key=32)
    k = k[:, :, torch.arange(500) % 8]
    single = [x.detach().float().requires_grad_() for x in (q, k, beta)]
    double = [x.detach().double().requires_grad_() for x in single]
    a = delta_read_weights(*single, backend=backend)
    expected = delta_read_weights(*double, backend="recurrent")
    assert a.dtype == torch.float32
    for actual, wanted in zip(
        [a, *torch.autograd.grad(weighted_sum(None, a), single)],
        [expected, *torch.autograd.grad(weighted_sum(None, expected), double)],
        strict=True,
    ):
        assert_near(actual, wanted, 5e-5)


@each_backend
def test_writes_that_expand_the_query_keep_their_gradients(backend):
    # beta |k|^2 = 8: going back, q grows by 7 a write; nothing may be recovered from its end
    q, k, _, beta = make_read(40, d_key=16)
    k = (3 * k / k.norm(dim=-1, keepdim=True)).detach()
    inputs = [x.detach().float().requires_grad_() for x in (q, k, 0.9 + 0 * beta)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    gradients = [
        torch.autograd.grad(delta_read_weights(*x, backend=name).sum(), x)
        for x, name in ((inputs, backend), (exact, "recurrent"))
    ]
    for actual, wanted in zip(*gradients, strict=True):
        assert_near(actual, wanted, 1e-4)


@each_backend
def test_half_precision_computes_in_float32_and_returns_the_dtype_of_q(backend):
    q, k, _, beta = (x.detach().bfloat16() for x in make_read(20))
    a = delta_read_weights(q, k, beta, backend=backend)
    assert a.dtype == torch.bfloat16
    assert_near(a, delta_read_weights(q.float(), k.float(), beta.float()), 1e-2)


@pytest.mark.usefixtures("no_annotation_checks")
def test_errors_name_the_shapes_and_the_choices():
    q, k, _, beta = make_read(4)
    with pytest.raises(ValueError, match=r"not k \[1, 2, 4, 5\], q \[1, 2, 4\] and beta"):
        delta_read_weights(q[..., 1:], k, beta)
    with pytest.raises(ValueError, match="'chunky' is none of auto, native, fla, chunk"):
        delta_read_weights(q, k, beta, backend="chunky")


@needs_compiler
def test_any_layout_and_threads_agree():
    q, k, _, beta = (x.detach() for x in make_read(300, b=3, h=4, d_key=24))
    expected = delta_read_weights(q, k, beta, backend="recurrent")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for keys in (k, k.contiguous(), k.mT.contiguous().mT):
            a = delta_read_weights(q.mT.contiguous().mT, keys, beta.contiguous(), backend="native")
            assert_near(a, expected)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_native_read_passes_the_checks_of_torch_and_refuses_second_derivatives():
    q, k, _, beta = make_read(6)
    torch.library.opcheck(torch.ops.fwlight.native_read.default, (q, k, beta, 0, None))
    loss = delta_read_weights(q, k, beta, backend="native").square().sum()
    with pytest.raises(RuntimeError, match="use backend='recurrent'"):
        torch.autograd.grad(loss, q, create_graph=True)
