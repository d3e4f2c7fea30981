"""Batches by number: made here or ahead by processes, the position counts the ones taken."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from fwlight.types import CarriedBatch, DataError
from tasks.lanes import TrainLanes
from tasks.position import TrainBatches

ROOT = Path(__file__).resolve().parent.parent.parent


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
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert torch.equal(torch.get_rng_state(), state)


LEAVING = """
import multiprocessing, sys, time
from tasks.position import TrainBatches
loader = TrainBatches(
    lambda n: time.sleep(1000 * n), n_batches=9, period=None, meaning={}, num_workers=2
)
batches = iter(loader)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
time.sleep(1000 if sys.argv[1] == "wait" else 0)
"""


@pytest.mark.fault(43)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere busy workers finish their batch")
@pytest.mark.parametrize("how", [0, signal.SIGTERM, signal.SIGKILL])
def test_workers_that_are_busy_end_with_their_parent(how) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LEAVING, "wait" if how else "exit"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    try:
        assert len(workers) == 2
        if how:
            process.send_signal(how)
        assert process.wait(timeout=60) == -how
        end = time.monotonic() + 60
        while any(map(_runs, workers)):
            assert time.monotonic() < end, "workers are left over"
            time.sleep(0.05)
    finally:
        process.kill()
        for pid in filter(_runs, workers):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_position_of_other_batches_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.seed=1, now it is task\.seed=2"):
        numbers(seed=2).load_state_dict(numbers().state_dict())
