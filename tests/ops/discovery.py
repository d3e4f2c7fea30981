"""The update rules found in fwlight.ops, and inputs for them: a new x_rule.py joins by itself."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import Tensor

import fwlight.ops
from fwlight.ops.native.build import build_obstacle
from tests.reference import reference_memory

RULES = {
    name: getattr(importlib.import_module(f"fwlight.ops.{name}"), name)
    for name in (module.name for module in pkgutil.iter_modules(fwlight.ops.__path__))
    if name.endswith("_rule")
}


def backends(rule: str) -> list[str]:
    """Names of the back ends that run on any device."""
    names = [x.name for x in importlib.import_module(f"fwlight.ops.{rule}").BACKENDS]
    return [*(name for name in names if name != "fla"), *(["auto"] if len(names) > 1 else [])]


_OBSTACLE = build_obstacle(torch.float32)
needs_compiler = pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))

CASES = [(rule, backend) for rule in RULES for backend in backends(rule)]
KERNELS = [(rule, backend) for rule, backend in CASES if backend != "auto"]


def run(rule: str, backend: str, q, k, v, beta, state=None) -> tuple[Tensor | None, Tensor]:
    function = RULES[rule]
    if "backend" not in inspect.signature(function).parameters:
        return function(q, k, v, beta, initial_state=state)
    return function(q, k, v, beta, initial_state=state, backend=backend)


def reference(rule: str, q, k, v, beta, state=None) -> tuple[Tensor, Tensor]:
    o, state, _ = reference_memory(q, k, v, beta, rule.removesuffix("_rule"), state=state)
    return o, state


def make_inputs(
    t: int, *, b: int = 1, h: int = 2, d_key: int = 5, d_value: int = 7, seed: int = 0
) -> list[Tensor]:
    """q, k (of length 1), v, beta in (0, 1) and a state; float64 leaves in a transposed layout."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    q, k, v = normal(b, t, h, d_key), normal(b, t, h, d_key), normal(b, t, h, d_value)
    k = k / k.norm(dim=-1, keepdim=True)
    inputs = [q, k, v, normal(b, t, h).sigmoid()]
    inputs = [x.transpose(1, 2) for x in inputs] + [normal(b, h, d_key, d_value)]
    return [x.requires_grad_() for x in inputs]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected value."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.1e} above {tolerance:.1e}"


def weighted_sum(o: Tensor | None, state: Tensor) -> Tensor:
    """A scalar in which every output and every number of the state has its own weight."""
    total = state.new_zeros(())
    for x in (o, state):
        if x is not None:
            weights = torch.linspace(-1, 1.5, x.numel(), dtype=state.dtype).view(x.shape)
            total = total + (weights * x).sum()
    return total
