"""The dropout of the networks, compiled or torch's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import dropout

from fwlight.models.dropout import Dropout
from fwlight.ops import native

ROOT = Path(__file__).resolve().parents[2]


def drop(p: float, x: torch.Tensor, *, train: bool = True) -> torch.Tensor:
    torch.manual_seed(0)
    return Dropout(p).train(train)(x)


def test_dropout_does_nothing_in_evaluation_or_without_a_probability():
    x = torch.linspace(1, 2, 100)
    assert torch.equal(drop(0.5, x, train=False), x)
    assert torch.equal(drop(0.0, x), x)
    assert torch.equal(drop(1.0, x), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropout_of_half_precision_is_torch_s(dtype):
    x = torch.linspace(1, 2, 1000, dtype=dtype)
    y = drop(0.5, x)
    torch.manual_seed(0)
    assert torch.equal(y, dropout(x, 0.5))


def test_dropout_without_compiled_code_is_torch_s():
    x = torch.linspace(1, 2, 1000)
    with native.switched_off():
        y = drop(0.5, x)
    torch.manual_seed(0)
    assert torch.equal(y, dropout(x, 0.5))


COMPILE = """
import torch
from fwlight.models.dropout import Dropout

network = torch.nn.Sequential(torch.nn.Linear(8, 64), Dropout(0.25)).train()
x = torch.rand(200, 8)
exported = torch.export.export(network, (x,)).module()
compiled = torch.compile(network, fullgraph=True)
for function in (exported, compiled):
    torch.manual_seed(0)
    first, second = function(x), function(x)
    for y in (first, second):
        assert abs((y == 0).double().mean() - 0.25) < 0.02
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(function(x), first)
y = compiled(x)
y.sum().backward()
torch.testing.assert_close(network[0].bias.grad, (y != 0).sum(0) / 0.75)
"""


@pytest.mark.slow
def test_dropout_of_compiled_and_exported_networks():
    # In a process of its own: the checks of annotations under pytest cannot be compiled.
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
