"""The update rules found in fwlight.ops, and inputs for them: a new x_rule.py joins by itself.

So do its gates, which are the keywords that it has beside a state and a back end, in all forms that
their annotations allow. A choice of them is a tuple of names with dimensions: ("decay", "b h t").
"""

import importlib
import inspect
import itertools
import pkgutil
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

import fwlight.ops
from fwlight.ops import native
from tests.reference import REFERENCES, reference_memory

RULES = {
    name: getattr(importlib.import_module(f"fwlight.ops.{name}"), name)
    for name in (module.name for module in pkgutil.iter_modules(fwlight.ops.__path__))
    if name.endswith("_rule")
}


def backends(rule: str) -> list[str]:
    """Names of the back ends that run on any device; of a rule without any, of what it is."""
    names = [x.name for x in entries(rule)] or ["recurrent"]
    return [*(name for name in names if name != "fla"), *(["auto"] if len(names) > 1 else [])]


def entries(rule: str) -> list[Any]:
    """The back ends of a rule; a new one may have none yet."""
    return getattr(importlib.import_module(f"fwlight.ops.{rule}"), "BACKENDS", [])


def gates_of(rule: str) -> list[tuple[tuple[str, str], ...]]:
    """All choices of gates that a rule takes, but for none."""
    parameters = inspect.signature(RULES[rule]).parameters.values()
    gates = [
        [
            (x.name, form.dim_str)
            for form in typing.get_args(x.annotation)
            if hasattr(form, "dim_str")
        ]
        for x in parameters
        if x.kind is x.KEYWORD_ONLY and x.name not in ("initial_state", "empties", "backend")
    ]
    choices = itertools.product(*([None, *forms] for forms in gates))
    return [x for x in (tuple(filter(None, choice)) for choice in choices) if x]


_OBSTACLE = native.absence(torch.float32)
needs_compiler = pytest.mark.skipif(_OBSTACLE is not None, reason=str(_OBSTACLE))

CASES = [(rule, backend) for rule in RULES for backend in backends(rule)]
KERNELS = [(rule, backend) for rule, backend in CASES if backend != "auto"]


def _can_run(rule: str, backend: str, gates: tuple[tuple[str, str], ...]) -> bool:
    _, k, v, _, _ = make_inputs(5)
    found = [
        x.obstacle(k, v, k.dtype, **make_gates(gates, 5))
        for x in entries(rule)
        if x.name == backend
    ]
    return found in ([], [None])


def run(
    rule: str, backend: str, q, k, v, beta, state=None, **gates
) -> tuple[Tensor | None, Tensor]:
    function = RULES[rule]
    if "backend" not in inspect.signature(function).parameters:
        return function(q, k, v, beta, initial_state=state)
    return function(q, k, v, beta, **gates, initial_state=state, backend=backend)


def reference(rule: str, q, k, v, beta, state=None, **gates) -> tuple[Tensor, Tensor]:
    """Run the memory of tests/reference.py, or the specification of a rule that it has not."""
    name = rule.removesuffix("_rule")
    if name not in REFERENCES:
        return run(rule, "recurrent", q, k, v, beta, state, **gates)
    o, state, _ = reference_memory(q, k, v, beta, name, state=state, **gates)
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


def make_gates(
    gates: tuple[tuple[str, str], ...], t: int, *, b: int = 1, h: int = 2, d_key: int = 5
) -> dict[str, Tensor]:
    """Keys of length 1 and logs in (-1, 0), leaves in float64, as `make_inputs` makes them."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"b": b, "h": h, "t": t, "k": d_key}
    found = {}
    for name, dims in gates:
        shape = [sizes[x] for x in dims.split()]
        if name.endswith("_key"):
            x = torch.randn(*shape, dtype=torch.float64, generator=generator)
            x = x / x.norm(dim=-1, keepdim=True)
        else:
            x = -torch.rand(*shape, dtype=torch.float64, generator=generator)
        found[name] = x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    return found


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


GATED = [
    (rule, backend, gates)
    for rule, backend in CASES
    for gates in gates_of(rule)
    if _can_run(rule, backend, gates)
]
