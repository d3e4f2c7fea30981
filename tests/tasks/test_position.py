"""Batches by number: made here or ahead by processes, the position counts the ones taken."""

from itertools import islice

import pytest
import torch

from fwlight.types import CarriedBatch, DataError
from tasks.lanes import TrainLanes
from tasks.position import TrainBatches


def numbers(position: int = 0, *, period=None, num_workers=0, seed=1) -> TrainBatches[int]:
    loader = TrainBatches(
        lambda number: number**2,
        n_batches=10,
        period=period,
        meaning={"seed": seed},
        num_workers=num_workers,
    )
    loader.load_state_dict({"position": position, "seed": seed})
    return loader


@pytest.mark.parametrize("period", [None, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_position_is_that_of_the_batches_taken(period, num_workers) -> None:
    loader = numbers(3, period=period, num_workers=num_workers)
    wanted = [i if period is None else i % period for i in range(3, 30)]
    for taken in (0, 5, 10):
        iter(loader)  # an iterator that nobody reads
        assert list(islice(loader, taken)) == [i**2 for i in wanted[:taken]]
        wanted = wanted[taken:]
        assert loader.state_dict() == {"position": wanted[0], "seed": 1}


def test_workers_bring_whole_batches_and_no_random_number_is_taken() -> None:
    state = torch.get_rng_state()
    stream, documents = torch.arange(101), torch.arange(101) % 7 == 0
    here, ahead = (
        list(
            TrainLanes(
                stream,
                batch_size=4,
                seq_len=4,
                carried=True,
                documents=documents,
                num_workers=num_workers,
            )
        )
        for num_workers in (0, 2)
    )
    assert len(here) == len(ahead)
    for one, other in zip(here, ahead, strict=True):
        assert isinstance(other, CarriedBatch)
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b
    assert torch.equal(torch.get_rng_state(), state)


def test_position_of_other_batches_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.seed=1, now it is task\.seed=2"):
        numbers(seed=2).load_state_dict(numbers().state_dict())
