"""Gated rules against numbers of their authors' references, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fwlight.ops import delta_rule, sum_rule
from tests.ops.discovery import assert_near, needs_compiler

GOLDEN = [
    "scalar_delta",
    "channel_delta",
    "erase_write",
    "erase_key",
    "scalar_sum",
    "channel_sum",
    "product2",
    "product3",
]


def run_golden(name: str, backend: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run a case as the specification says that its rule is called."""
    q, k, v, beta, decay, state = (
        inputs.get(x) for x in ("q", "k", "v", "beta", "decay", "initial_state")
    )
    assert q is not None
    options = {"initial_state": state, "backend": backend}
    if name.endswith("sum"):
        return sum_rule(q, k, v, beta, decay=decay, **options)
    erase_key = inputs.get("erase_key")
    if name == "erase_write":
        v, erase_key = inputs["write"] * v, inputs["erase"] * k
        beta = torch.ones_like(v[..., 0])
    if decay is not None and (writes := k.shape[2] // q.shape[2]) > 1:  # before the first of them
        others = torch.zeros_like(decay)
        decay = torch.stack([decay, *[others] * (writes - 1)], 3).flatten(2, 3)
    return delta_rule(q, k, v, beta, decay=decay, erase_key=erase_key, **options)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(
    "backend", ["recurrent", "chunk", pytest.param("native", marks=needs_compiler), "auto"]
)
def test_golden_gated_rules(name, backend, shared_dir):
    file = np.load(shared_dir / "reference" / "gated_rules_golden.npz")
    cases = {key.split("/")[1] for key in file if key.startswith(f"{name}/")}
    assert len(cases) == 4
    for case in cases:
        found = {
            part: {
                key.split("/")[-1]: torch.from_numpy(file[key])
                for key in file
                if key.startswith(f"{name}/{case}/{part}/")
            }
            for part in ("in", "out", "weight", "grad")
        }
        inputs = {key: x.requires_grad_() for key, x in found["in"].items()}
        o, state = run_golden(name, backend, inputs)
        weights = found["weight"]
        loss = (o * weights["o"]).sum() + (state * weights["state"]).sum()
        gradients = torch.autograd.grad(loss, list(inputs.values()))
        assert_near(o, found["out"]["o"])
        assert_near(state, found["out"]["state"])
        for key, gradient in zip(inputs, gradients, strict=True):
            assert_near(gradient, found["grad"][key])
