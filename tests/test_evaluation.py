"""Looking at a network in the middle of its training leaves no trace."""

import random
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fwlight.evaluation import evaluation_mode, same_random_numbers, undisturbed


class Counting(nn.Module):
    """Has a buffer that every call replaces, and one that is None."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("unused", None)

    def forward(self):
        self.calls = self.calls + 1
        return self.weight * self.calls


def network():
    made = nn.ModuleList([Counting(), Counting(), nn.Dropout(0.5)]).train()
    made[0].eval()  # a part that is frozen
    return made


@pytest.mark.parametrize("look", [evaluation_mode, undisturbed])
@pytest.mark.parametrize("fails", [False, True])
def test_modes_buffers_and_gradients_come_back_one_by_one(look, fails):
    made = network()
    before = [part.training for part in made.modules()]
    with pytest.raises(KeyError) if fails else nullcontext(), look(made):
        assert not any(part.training for part in made.modules())
        assert not made[1]().requires_grad
        assert made[1].calls == 1
        if fails:
            raise KeyError
    assert [part.training for part in made.modules()] == before
    assert made[1].calls == 0
    assert made[1].unused is None
    assert made[1]().requires_grad


def test_only_an_undisturbed_look_leaves_the_random_numbers_alone():
    made = network()
    for look, same in ((undisturbed, True), (evaluation_mode, False)):
        torch.manual_seed(0)
        expected = torch.rand(2)
        torch.manual_seed(0)
        with look(made):
            torch.rand(1)
        assert torch.equal(torch.rand(2), expected) == same


def test_pythons_random_numbers_are_left_alone():
    manager = same_random_numbers()  # type checks of the call draw some themselves
    state = random.getstate()
    with manager:
        random.random()
    assert random.getstate() == state
