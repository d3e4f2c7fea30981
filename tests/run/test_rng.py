"""Random state: stored, restored, kept apart."""

import random

import torch

from fwlight.run.rng import get_rng_state, seed_rank, set_rng_state


def draws():
    return torch.rand(3).tolist(), [random.random() for _ in range(3)], random.gauss(0, 1)


def test_state_put_back_gives_the_same_numbers(tmp_path):
    random.gauss(0, 1)  # Python keeps the second number of a pair
    torch.save(get_rng_state(), tmp_path / "rng.pt")
    first = draws()
    draws()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == first


def test_streams_differ_by_seed_rank_and_step_and_repeat():
    found = {}
    for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 5)]:
        seed_rank(*key)
        found[key] = draws()
        seed_rank(*key)
        assert draws() == found[key]
    for part in range(3):
        assert len({str(value[part]) for value in found.values()}) == 4
