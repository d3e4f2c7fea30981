from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwlight.types import IGNORE_INDEX, DataError
from tasks.contexts import CarriedLanes, SlidingWindows
from tasks.lanes import EvalLanes, TrainLanes
from tasks.text.documents import document_starts
from tasks.text.vocabulary import Vocabulary

few = st.integers(1, 9)


def _counted(loaders):
    """Every counted target with the inputs of its window up to and with the one before it."""
    found = {}
    for loader in loaders:
        for batch in loader:
            for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
                for t in (targets != IGNORE_INDEX).nonzero().flatten().tolist():
                    target = int(targets[t])
                    assert target not in found
                    found[target] = inputs[: t + 1].tolist()
    return found


@given(n=st.integers(1, 40), seq_len=few, stride=few, batch_size=few, world_size=st.integers(1, 3))
def test_sliding_windows_count_every_target_once_with_its_context(
    n, seq_len, stride, batch_size, world_size
):
    stream = torch.arange(n + 1, dtype=torch.int32) + 100
    options = {"batch_size": batch_size, "seq_len": seq_len, "stride": stride}
    if stride > seq_len:
        with pytest.raises(DataError, match=f"task.eval_stride={stride} leaves out tokens"):
            SlidingWindows(stream, **options)
        return
    loaders = [
        SlidingWindows(stream, **options, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    assert [len(list(loader)) for loader in loaders] == [len(loader) for loader in loaders]
    found = _counted(loaders)
    assert sorted(found) == list(range(101, 101 + n))
    for target, context in found.items():
        # A run of the text that ends right before the target, of full length where there is one.
        assert context == list(range(target - len(context), target))
        assert len(context) <= seq_len
        assert len(context) >= min(target - 100, seq_len - stride + 1)


@given(n=st.integers(1, 60), seq_len=few, n_lanes=few, world_size=st.integers(1, 3))
def test_carried_lanes_are_contiguous_and_count_every_target_once(n, seq_len, n_lanes, world_size):
    stream = torch.arange(n + 1, dtype=torch.int32) + 100
    if n < n_lanes:
        with pytest.raises(DataError, match=rf"{n} target .*task\.eval_batch_size={n_lanes}"):
            CarriedLanes(stream, n_lanes=n_lanes, seq_len=seq_len)
        return
    loaders = [
        CarriedLanes(stream, n_lanes=n_lanes, seq_len=seq_len, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    lanes = []
    for loader in loaders:
        batches = list(loader)
        assert [batch.begins for batch in batches] == [i == 0 for i in range(len(loader))]
        assert [batch.continues for batch in batches][-1:] == [False]
        assert all(batch.continues for batch in batches[:-1])
        lanes.append(torch.cat([batch.targets for batch in batches], dim=1))
        inputs = torch.cat([batch.inputs for batch in batches], dim=1)
        counted = lanes[-1] != IGNORE_INDEX
        assert torch.equal(inputs[counted] + 1, lanes[-1][counted])
    together = torch.cat(lanes)
    assert torch.equal(together[together != IGNORE_INDEX], torch.arange(101, 101 + n))
    rows = (together != IGNORE_INDEX).any(1).sum()
    assert rows <= n_lanes


def test_carried_training_goes_on_within_an_epoch_and_begins_the_next():
    loader = TrainLanes(torch.arange(101), batch_size=2, seq_len=20, carried=True)
    marks = [(batch.begins, batch.continues) for _ in range(2) for batch in loader]
    assert marks == [(True, True), (False, True), (False, False)] * 2
    short = TrainLanes(torch.arange(101), batch_size=2, seq_len=20, carried=True, epoch_limit=2)
    batches = iter(short)
    assert [next(batches).begins for _ in range(3)] == [True, False, True]


def test_documents_begin_at_titles_of_the_first_rank():
    text = (
        "<eos> = A title = <eos> <eos> some text <eos> = = A section = = <eos> more = text <eos> "
        "= B = <eos> = <eos> = = <eos>"
    )
    words = text.split()
    vocabulary = Vocabulary(["<unk>", "<eos>", *sorted(set(words) - {"<eos>"})])
    stream = torch.tensor(vocabulary.encode(words), dtype=torch.int32)
    starts = document_starts(stream, vocabulary).nonzero().flatten().tolist()
    assert [words[i : i + 3] for i in starts] == [["=", "A", "title"], ["=", "B", "="]]
    plain = Vocabulary(["<unk>", "<eos>", "a"])
    assert not document_starts(torch.tensor([2, 2, 1]), plain).any()


def test_documents_of_every_lane_are_in_its_batches():
    stream, documents = torch.arange(41), torch.zeros(41, dtype=torch.bool)
    documents[[0, 7, 20, 33]] = True
    loader = TrainLanes(stream, batch_size=2, seq_len=8, carried=True, documents=documents)
    found = [batch.inputs[batch.documents].tolist() for batch in loader]
    assert sorted(chain.from_iterable(found)) == [0, 7, 20, 33]
    lanes = CarriedLanes(stream, n_lanes=3, seq_len=8, documents=documents)
    counted = [
        batch.inputs[batch.documents & (batch.targets != IGNORE_INDEX)].tolist() for batch in lanes
    ]
    assert sorted(chain.from_iterable(counted)) == [0, 7, 20, 33]


def test_packed_rows_know_where_documents_begin():
    stream, documents = torch.arange(1, 42), torch.zeros(41, dtype=torch.bool)
    documents[[0, 7, 20, 33]] = True
    firsts = stream[documents]
    packed = {"batch_size": 2, "seq_len": 8, "documents": documents}
    loaders = (TrainLanes(stream, **packed), EvalLanes(stream, **packed))
    for loader in (*loaders, SlidingWindows(stream, stride=3, **packed)):
        seen = set()
        for batch in loader:
            assert torch.equal(batch.documents, torch.isin(batch.inputs, firsts))
            seen |= set(batch.inputs[batch.documents].tolist())
        assert seen == set(firsts.tolist())


@pytest.mark.parametrize("loader", [SlidingWindows, CarriedLanes])
def test_stream_without_a_target_is_refused(loader):
    options = {"batch_size": 1, "stride": 1} if loader is SlidingWindows else {"n_lanes": 1}
    with pytest.raises(DataError, match="no target token"):
        loader(torch.arange(1), seq_len=4, **options)
