from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fwlight.types import IGNORE_INDEX, DataError, LMBatch
from tasks.lanes import EvalLanes, TrainLanes

sizes = st.integers(1, 9)


def _equal(left: list[LMBatch], right: list[LMBatch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@given(batch_size=sizes, seq_len=sizes, n=st.integers(0, 60))
def test_train_lanes_are_contiguous(batch_size, seq_len, n):
    stream = torch.arange(batch_size + 1 + n, dtype=torch.int32) + 100
    loader = TrainLanes(stream, batch_size=batch_size, seq_len=seq_len)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(batch.inputs.shape[1] == seq_len for batch in batches[:-1])
    inputs = torch.cat([batch.inputs for batch in batches], dim=1)
    targets = torch.cat([batch.targets for batch in batches], dim=1)
    length = (batch_size + n) // batch_size
    expected = 100 + torch.arange(batch_size * length).view(batch_size, length)
    assert torch.equal(inputs, expected)
    assert torch.equal(targets, expected + 1)
    assert inputs.dtype == targets.dtype == torch.int64


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_train_ranks_together_are_the_single_process(world_size):
    stream = torch.randint(50, (500,), generator=torch.Generator().manual_seed(1))
    whole = list(TrainLanes(stream, batch_size=6, seq_len=16))
    ranks = [
        list(TrainLanes(stream, batch_size=6, seq_len=16, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = [
        LMBatch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        for batches in zip(*ranks, strict=True)
    ]
    assert _equal(joined, whole)


def test_train_batch_size_must_divide_over_the_ranks():
    with pytest.raises(DataError, match=r"task\.batch_size=5 .* 2 processes"):
        TrainLanes(torch.arange(100), batch_size=5, seq_len=4, world_size=2)


@pytest.mark.parametrize("tokens", [0, 1, 8])
def test_train_stream_must_fill_every_lane(tokens):
    with pytest.raises(DataError, match=rf"{max(tokens - 1, 0)} target .*task\.batch_size=8"):
        TrainLanes(torch.arange(tokens), batch_size=8, seq_len=4)


def _take(loader, n) -> list[LMBatch]:
    return list(islice(loader, n))


def test_train_iterations_read_on_where_the_last_stopped():
    loader = TrainLanes(torch.arange(101), batch_size=4, seq_len=4)
    whole = list(loader)
    assert len(whole) == 7
    assert _equal(list(loader), whole)
    assert _equal(_take(loader, 2) + _take(loader, 9) + _take(loader, 3), whole + whole[:5])


@pytest.mark.parametrize("world_size", [1, 2])
def test_train_state_goes_on_at_any_segment(world_size):
    def loader(rank=0, world_size=1):
        return TrainLanes(
            torch.arange(101), batch_size=4, seq_len=4, rank=rank, world_size=world_size
        )

    whole = list(loader())
    own = slice(4 - 4 // world_size, 4)
    expected = [LMBatch(x[own], y[own]) for x, y in whole] * 3
    for taken in range(2 * len(whole)):
        interrupted = loader()
        for part in (taken // 2, taken - taken // 2):
            _take(interrupted, part)
        resumed = loader(world_size - 1, world_size)
        resumed.load_state_dict(interrupted.state_dict())
        iter(resumed)  # an iterator that nobody reads must not move the position
        assert _equal(_take(resumed, len(whole)), expected[taken:][: len(whole)])


@pytest.mark.parametrize("epoch_limit", [3, 0.5])
def test_train_epoch_limit_shortens_the_cycle(epoch_limit):
    loader = TrainLanes(torch.arange(25), batch_size=1, seq_len=4, epoch_limit=epoch_limit)
    assert len(loader) == 6
    whole = list(TrainLanes(torch.arange(25), batch_size=1, seq_len=4))
    assert _equal(list(loader), whole[:3] * 2)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 2), ("seq_len", 8)])
def test_train_state_of_other_lanes_is_refused(key, value):
    state = TrainLanes(torch.arange(101), batch_size=4, seq_len=4).state_dict()
    loader = TrainLanes(torch.arange(101), **{"batch_size": 4, "seq_len": 4, key: value})
    with pytest.raises(DataError, match=rf"task\.{key}=4, now it is task\.{key}={value};"):
        loader.load_state_dict(state)


@given(n=st.integers(1, 80), batch_size=sizes, seq_len=sizes, world_size=st.integers(1, 4))
def test_eval_counts_every_target_once_in_the_same_context(n, batch_size, seq_len, world_size):
    stream = torch.arange(n + 1, dtype=torch.int32) + 7
    lengths, contexts = set(), {}
    for rank in range(world_size):
        loader = EvalLanes(
            stream, batch_size=batch_size, seq_len=seq_len, rank=rank, world_size=world_size
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        lengths.add(len(batches))
        for inputs, targets in batches:
            for row_in, row_out in zip(inputs.tolist(), targets.tolist(), strict=True):
                for t, target in enumerate(row_out):
                    if target != IGNORE_INDEX:
                        assert target not in contexts
                        contexts[target] = row_in[: t + 1]
    assert len(lengths) == 1, "each rank has equally many batches"
    assert contexts == {
        7 + i: list(range(7 + (i - 1) // seq_len * seq_len, 7 + i)) for i in range(1, n + 1)
    }


def test_eval_lanes_are_contiguous():
    inputs = torch.cat([b.inputs for b in EvalLanes(torch.arange(65), batch_size=4, seq_len=4)], 1)
    assert torch.equal(inputs, torch.arange(64).view(4, 16))


@pytest.mark.parametrize("tokens", [0, 1])
def test_eval_stream_without_a_target_is_refused(tokens):
    with pytest.raises(DataError, match="no target"):
        EvalLanes(torch.arange(tokens), batch_size=2, seq_len=4)


def test_loaders_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(TrainLanes(torch.arange(99), batch_size=4, seq_len=8))
    list(EvalLanes(torch.arange(99), batch_size=4, seq_len=8))
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
