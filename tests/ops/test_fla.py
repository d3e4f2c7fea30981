"""The way to the kernels of fla-core, on a machine without a GPU."""

import importlib.util
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fwlight.ops import backends, delta_rule, fla, sum_rule
from tests.ops.discovery import assert_near, make_gates, make_inputs, reference, weighted_sum

each_choice = pytest.mark.parametrize("function", [sum_rule, delta_rule])


@each_choice
def test_fla_falls_back_to_chunk_with_one_warning(function):
    backends._warn_once.cache_clear()
    inputs = make_inputs(70)[:4]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [function(*inputs, backend="fla") for _ in range(3)]
    assert len(caught) == 1
    assert "not cuda" in str(caught[0].message)
    for o, state in results:
        expected_o, expected_state = function(*inputs, backend="chunk")
        assert torch.equal(o, expected_o)
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"is_cuda": False}, "cpu"),
        ({"dtype": torch.float32}, "float32"),
        ({"size": 258}, "258"),
        ({"size": 33}, "even"),
        ({"t": 3}, "fewer tokens than heads"),
        ({"decay": "b h t"}, None),
        ({"decay": "b h t k"}, None),
        ({"erase_key": "b h t k"}, "erase under the key"),
    ],
)
@pytest.mark.usefixtures("no_annotation_checks")
def test_fla_obstacles_are_named(change, reason, monkeypatch):
    monkeypatch.setattr(fla, "_import_obstacle", lambda _: None)
    case = {"is_cuda": True, "dtype": torch.bfloat16, "size": 64, "t": 128} | change
    x = SimpleNamespace(
        is_cuda=case["is_cuda"],
        device=SimpleNamespace(type="cuda" if case["is_cuda"] else "cpu"),
        dtype=case["dtype"],
        shape=(2, 4, case["t"], case["size"]),
    )
    gates = make_gates(tuple((n, case[n]) for n in ("decay", "erase_key") if n in case), 128)
    obstacle = fla.obstacle(x, x, torch.float32, **gates)
    assert obstacle is None if reason is None else reason in obstacle


def test_fla_that_cannot_be_imported_is_an_obstacle(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    fla._import_obstacle.cache_clear()
    for modules in fla._MODULES.values():
        assert "fla-core cannot be imported" in fla._import_obstacle(modules)
    fla._import_obstacle.cache_clear()


@pytest.fixture
def fake_fla(monkeypatch):
    """A stand-in for fla-core with its layout `[B, T, H, D]`, its default scale and its checks."""

    def kernel(rule, q, k, v, g, beta, scale, initial_state, output_final_state):
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert initial_state is None or initial_state.dtype == torch.float32
        scale = k.shape[-1] ** -0.5 if scale is None else scale
        inputs = (q, k, v, beta, g)
        q, k, v, beta, g = (None if x is None else x.transpose(1, 2).float() for x in inputs)
        assert g is None or g.isfinite().all()  # it subtracts running sums
        o, state = reference(rule, q * scale, k, v, beta, initial_state, decay=g)
        return o.transpose(1, 2).to(torch.bfloat16), state if output_final_state else None

    def chunk_delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
        return kernel("delta_rule", q, k, v, None, beta, scale, initial_state, output_final_state)

    def chunk_gated_delta_rule(
        q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False
    ):
        assert g.ndim == 3
        assert g.dtype == torch.float32
        return kernel("delta_rule", q, k, v, g, beta, scale, initial_state, output_final_state)

    def chunk_kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
        assert g.shape == k.shape
        assert g.dtype == torch.float32
        return kernel("delta_rule", q, k, v, g, beta, scale, initial_state, output_final_state)

    def chunk_simple_gla(
        q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False
    ):
        assert g is None or (g.ndim == 3 and g.dtype == torch.float32)
        assert g_gamma is None
        return kernel("sum_rule", q, k, v, g, None, scale, initial_state, output_final_state)

    def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
        assert g.shape == k.shape
        assert g.dtype == torch.float32
        return kernel("sum_rule", q, k, v, g, None, scale, initial_state, output_final_state)

    modules = {name: ModuleType(name) for name in ("fla", "fla.ops")}
    for function, folder in (
        (chunk_delta_rule, "delta_rule"),
        (chunk_gated_delta_rule, "gated_delta_rule"),
        (chunk_kda, "kda"),
        (chunk_simple_gla, "simple_gla"),
        (chunk_gla, "gla"),
    ):
        modules[f"fla.ops.{folder}"] = ModuleType(folder)
        setattr(modules[f"fla.ops.{folder}"], function.__name__, function)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for rule in (delta_rule, sum_rule):
        module = sys.modules[rule.__module__]
        able = tuple(x._replace(obstacle=backends.no_obstacle) for x in module.BACKENDS)
        monkeypatch.setattr(module, "BACKENDS", able)


@each_choice
@pytest.mark.parametrize("carried", [False, True], ids=["empty", "carried"])
@pytest.mark.parametrize("dims", [None, "b h t", "b h t k"])
@pytest.mark.usefixtures("fake_fla")
def test_fla_arguments_are_mapped(function, carried, dims):
    gates = {} if dims is None else make_gates((("decay", dims),), 20)
    gates = {name: x.detach().to(torch.bfloat16) for name, x in gates.items()}
    for x in gates.values():
        x[:, :, 11] = -torch.inf
        x.requires_grad_()
    inputs = [x.detach().to(torch.bfloat16).requires_grad_() for x in make_inputs(20)]
    *tokens, state = inputs
    state = state if carried else None
    o, last = function(*tokens, **gates, initial_state=state, backend="fla")
    expected_o, expected = function(*tokens, **gates, initial_state=state, backend="recurrent")
    assert (o.shape, o.dtype, last.dtype) == (expected_o.shape, torch.bfloat16, torch.float32)
    # The sum rule multiplies beta into v in half precision.
    assert_near(o, expected_o, 1e-2)
    assert_near(last, expected, 1e-2)
    nothing, last_alone = function(None, *tokens[1:], **gates, initial_state=state, backend="fla")
    assert nothing is None
    assert torch.equal(last_alone, last)
    leaves = tokens + ([state] if carried else []) + list(gates.values())
    for actual, wanted in zip(
        torch.autograd.grad(weighted_sum(o.float(), last), leaves),
        torch.autograd.grad(weighted_sum(expected_o.float(), expected), leaves),
        strict=True,
    ):
        assert_near(actual, wanted, 3e-2)


@pytest.mark.skipif(
    not importlib.util.find_spec("triton")
    or not importlib.util.find_spec("fla")
    or version("fla-core").startswith(("0.3.", "0.4.")),
    reason="needs triton and fla-core from 0.5.0 on, whose kernels the interpreter runs",
)
@pytest.mark.slow
def test_fla_kernels_compute_the_rules_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.ops.interpreted_fla"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cases = [line.split(";") for line in done.stdout.splitlines()]
    assert len(cases) == 48
    for case in cases:  # a unit in the last place of float16 is 1e-3
        assert float(case[-1]) < 4e-3, case
