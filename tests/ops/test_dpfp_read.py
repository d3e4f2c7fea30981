"""One read under DPFP features that are never stored, against the read of stored ones."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights, Gates
from fwlight.ops import delta_rule, dpfp_read_weights, fwm_rule, native, read_weights, sum_rule
from tests.ops.discovery import assert_near, weighted_sum

pytestmark = pytest.mark.skipif(
    not native.can_run(torch.ones(1)), reason="there is no C++ compiler"
)
each_rule = pytest.mark.parametrize("rule", [sum_rule, delta_rule])
each_eps = pytest.mark.parametrize("eps", [None, 0.0, 0.1])


def make_read(t: int, d: int = 5, nu: int = 2, *, b: int = 2, h: int = 3) -> list[Tensor]:
    """A query, keys before the map and strengths; float64 leaves, tokens before heads."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, beta = normal(b, t, h, d).transpose(1, 2), normal(b, t, h).sigmoid().transpose(1, 2)
    return [y.requires_grad_() for y in (normal(b, h, 2 * d * nu).abs() / d, x, beta)]


def stored(rule, q: Tensor, x: Tensor, beta: Tensor | None, *, nu: int, eps: float | None):
    """The same with features that are stored."""
    r = torch.cat([x.relu(), (-x).relu()], dim=-1)
    k = torch.cat([r * r.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)
    if eps is not None:
        total = k.sum(-1, keepdim=True) + eps
        k = k / total.masked_fill(total == 0, 1.0)
    return read_weights(rule, q, k, beta)


@each_rule
@each_eps
@pytest.mark.parametrize("t", [0, 1, 16, 70])
@pytest.mark.parametrize(("d", "nu"), [(1, 1), (5, 2), (33, 3)])
def test_weights_and_gradients_equal_those_of_stored_features(rule, eps, t, d, nu):
    inputs = make_read(t, d, nu)
    if t > 3:
        inputs[1].data[:, :, 2] = 0.0  # a key without features
    results = []
    for function in (dpfp_read_weights, stored):
        a = function(rule, *inputs, nu=nu, eps=eps)
        results.append([a, *torch.autograd.grad(weighted_sum(None, a), inputs)])
    for actual, wanted in zip(*results, strict=True):
        assert_near(actual, wanted, 1e-11)


def test_the_sum_rule_needs_no_strengths():
    q, x, _ = make_read(20)
    a = dpfp_read_weights(sum_rule, q, x, None, nu=2, eps=0.0)
    assert_near(a, stored(sum_rule, q, x, None, nu=2, eps=0.0), 1e-12)
    assert torch.autograd.gradcheck(
        lambda *inputs: dpfp_read_weights(sum_rule, *inputs, None, nu=2, eps=0.1), (q, x)
    )


@each_rule
def test_float32_is_accurate_over_many_chunks(rule):
    exact = make_read(500, 32, 2, b=1, h=2)
    single = [x.detach().float().requires_grad_() for x in exact]
    results = []
    for inputs in (single, exact):
        a = dpfp_read_weights(rule, *inputs, nu=2, eps=0.0)
        results.append([a, *torch.autograd.grad(weighted_sum(None, a), inputs)])
    for actual, wanted in zip(*results, strict=True):
        assert actual.dtype == torch.float32
        assert_near(actual, wanted, 1e-5)


@each_rule
def test_any_layout_and_threads_agree(rule):
    q, x, beta = (y.detach() for y in make_read(300, 24, 1, b=3, h=4))
    expected = dpfp_read_weights(rule, q, x, beta, nu=1, eps=0.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for keys in (x.contiguous(), x.mT.contiguous().mT):
            a = dpfp_read_weights(
                rule, q.mT.contiguous().mT, keys, beta.contiguous(), nu=1, eps=0.0
            )
            assert torch.equal(a, expected)
    finally:
        torch.set_num_threads(before)


@each_rule
def test_where_compiled_code_cannot_run_there_is_no_answer(rule):
    inputs = make_read(4)
    assert dpfp_read_weights(partial(rule, backend="chunk"), *inputs, nu=2, eps=None) is None
    half = [x.detach().bfloat16() for x in inputs]
    assert dpfp_read_weights(rule, *half, nu=2, eps=None) is None
    with native.switched_off():
        assert dpfp_read_weights(rule, *inputs, nu=2, eps=None) is None


@pytest.mark.usefixtures("no_annotation_checks")
def test_wrong_sizes_and_rules_are_refused():
    q, x, beta = make_read(4)
    for changed in ((q[..., 1:], x, beta), (q[:, 1:], x, beta), (q, x, beta[..., 1:])):
        with pytest.raises(ValueError, match=r"not x \[2, 3, 4, 5\], nu 2, q \["):
            dpfp_read_weights(delta_rule, *changed, nu=2, eps=None)
    with pytest.raises(ValueError, match="nu 10"):
        dpfp_read_weights(delta_rule, q, x, beta, nu=10, eps=None)
    with pytest.raises(AssertionError):
        dpfp_read_weights(delta_rule, q, x, None, nu=2, eps=None)
    assert dpfp_read_weights(fwm_rule, q, x, beta, nu=2, eps=None) is None


def test_strengths_in_half_precision_are_promoted():
    q, x, beta = (y.detach().float() for y in make_read(4))
    a = dpfp_read_weights(delta_rule, q, x, beta.bfloat16(), nu=2, eps=0.0)
    assert torch.equal(
        a, dpfp_read_weights(delta_rule, q, x, beta.bfloat16().float(), nu=2, eps=0.0)
    )


@each_rule
@each_eps
def test_the_operator_passes_the_checks_of_torch_and_refuses_second_derivatives(rule, eps):
    q, x, beta = make_read(20)
    strengths = beta if rule is delta_rule else None
    torch.library.opcheck(torch.ops.fwlight.native_read.default, (q, x, strengths, 2, eps))
    loss = dpfp_read_weights(rule, q, x, beta, nu=2, eps=eps).square().sum()
    with pytest.raises(RuntimeError, match="use backend='recurrent'"):
        torch.autograd.grad(loss, q, create_graph=True)


@each_rule
@pytest.mark.parametrize("key_norm", ["none", "sum"])
@pytest.mark.parametrize("read_norm", ["none", "output"])
def test_a_memory_recalls_with_it_what_it_writes_and_reads(rule, key_norm, read_norm, monkeypatch):
    memory = FastWeights(
        6, d_value=9, feature_map=partial(DPFPFeatureMap, 2), update_rule=rule,
        key_norm=key_norm, read_norm=read_norm, key_norm_eps=1e-3,
    )  # fmt: skip
    _, x, beta = make_read(40, 6, h=1)
    q = torch.randn(2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    beta = beta if memory.has_beta else None
    ids = torch.arange(80).reshape(2, 40) % 9
    v = torch.nn.functional.one_hot(ids, 9).double()[:, None]
    expected = memory.read(q[:, :, None], memory.write(x, v, Gates(beta))).squeeze(2)
    reads = []
    operator = native.native_dpfp_read
    monkeypatch.setattr(native, "native_dpfp_read", lambda *a: reads.append(a) or operator(*a))
    assert_near(memory.recall(q, x, ids, Gates(beta)), expected, 1e-11)
    # The delta rule's own weights are not what a read_norm sums.
    assert len(reads) == (0 if memory.has_beta and read_norm == "output" else 1)
    # Who observes is shown the features.
    memory.observer = Observer()
    reads.clear()
    assert_near(memory.recall(q, x, ids, Gates(beta)), expected, 1e-11)
    assert reads == []
    assert [y.shape[-1] for y in memory.observer.seen] == [24, 24]
    assert memory.observer.seen[0].shape[2] == 40


class Observer:
    def __init__(self):
        self.seen = []

    def write(self, writes):
        self.seen.append(writes.k)

    def read(self, q, padding_mask=None):
        self.seen.append(q)


def test_a_changed_map_is_not_passed_by():
    class Shifted(DPFPFeatureMap):
        def forward(self, x):
            return super().forward(x) + 1

    memory = FastWeights(6, d_value=9, feature_map=Shifted, update_rule=delta_rule, key_norm="sum")
    _, x, beta = make_read(40, 6, h=1)
    q = torch.ones(2, 1, 6, dtype=torch.float64)
    ids = torch.arange(80).reshape(2, 40) % 9
    v = torch.nn.functional.one_hot(ids, 9).double()[:, None]
    assert (memory.queries(q[:, :, None]) > 0).all()
    expected = memory.read(q[:, :, None], memory.write(x, v, Gates(beta))).squeeze(2)
    assert_near(memory.recall(q, x, ids, Gates(beta)), expected, 1e-11)
