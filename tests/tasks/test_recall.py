"""Recall sequences against their definition, loaders against resume and ranks."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fwlight.types import IGNORE_INDEX, DataError, LMBatch
from tasks.draws import EPOCH_BATCHES, EvalSets, TrainDraws, seeded
from tasks.mqar import MQARDataModule
from tasks.recall import recall_sequences

SETTINGS = {"seq_len": 16, "vocab_size": 20, "power": 0.1}


def draw(n: int, n_pairs: int = 3, seed: int = 1, **changes) -> LMBatch:
    return recall_sequences(n, n_pairs=n_pairs, generator=seeded(seed), **SETTINGS | changes)


def train_loader(
    *, batch_size: int = 6, seed: int = 5, rank: int = 0, world_size: int = 1, **limit
) -> TrainDraws[LMBatch]:
    data = MQARDataModule(batch_size=batch_size, n_pairs=(2, 4), seed=seed, **SETTINGS)
    return TrainDraws(
        data.training_batch,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        **limit,
    )


def equal(left: list[LMBatch], right: list[LMBatch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def take(loader, n: int) -> list[LMBatch]:
    return list(islice(loader, n))


# Sequences


@settings(deadline=None)
@given(
    n_pairs=st.integers(1, 5),
    spare=st.integers(0, 9),
    more=st.integers(2, 30),
    power=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_every_key_is_asked_once_and_its_value_is_the_target(n_pairs, spare, more, power, seed):
    seq_len, vocab_size = 4 * n_pairs + spare, 2 * n_pairs + more
    inputs, targets = draw(7, n_pairs, seed, seq_len=seq_len, vocab_size=vocab_size, power=power)
    assert inputs.shape == targets.shape == (7, seq_len)
    half = vocab_size // 2
    for row, answers in zip(inputs.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[: 2 * n_pairs : 2], row[1 : 2 * n_pairs : 2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == n_pairs
        assert all(1 <= key < half <= value < vocab_size for key, value in pairs.items())
        assert answers[: 2 * n_pairs] == [IGNORE_INDEX] * 2 * n_pairs
        asked = {token: answer for token, answer in zip(row, answers, strict=True) if answer >= 0}
        assert asked == pairs
        for t in range(2 * n_pairs, seq_len):
            assert (row[t] == 0) == (answers[t] == IGNORE_INDEX)
            assert row[t] == 0 or t % 2 == 0


def test_gaps_follow_the_power_law():
    inputs, _ = draw(20_000, 1, seq_len=22, vocab_size=8, power=0.01)
    share = (inputs[:, 2::2] > 0).double().mean(0)
    law = torch.arange(1, 11, dtype=torch.float64) ** -0.99
    torch.testing.assert_close(share, law / law.sum(), rtol=0, atol=0.015)


def test_all_keys_and_values_occur():
    inputs, targets = draw(500, 4)
    assert set(inputs.unique().tolist()) == set(range(20))
    assert set(targets.unique().tolist()) == {IGNORE_INDEX, *range(10, 20)}


def test_sequences_are_a_function_of_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = draw(5), draw(5), draw(5, seed=2)
    assert equal([first], [again])
    assert not equal([first], [other])
    take(train_loader(), 3)
    assert torch.equal(torch.get_rng_state(), before)


# Training batches


def test_train_batches_mix_the_numbers_of_pairs_and_never_repeat():
    batches = take(train_loader(), 40)
    counts = [(batch.targets >= 0).sum(1).unique().tolist() for batch in batches]
    assert {tuple(count) for count in counts} == {(2,), (4,)}
    assert len({batch.inputs.numpy().tobytes() for batch in batches}) == 40


@pytest.mark.parametrize("world_size", [2, 3])
def test_train_ranks_together_are_the_single_process(world_size):
    whole = take(train_loader(), 8)
    ranks = [take(train_loader(rank=r, world_size=world_size), 8) for r in range(world_size)]
    joined = [
        LMBatch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        for batches in zip(*ranks, strict=True)
    ]
    assert equal(joined, whole)


def test_train_batches_differ_between_seeds():
    assert not equal(take(train_loader(), 2), take(train_loader(seed=6), 2))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_train_state_goes_on_at_any_batch(world_size, taken):
    rank = world_size - 1
    mine = {"rank": rank, "world_size": world_size}
    whole = take(train_loader(**mine), 12)
    interrupted = train_loader()
    for part in (taken // 2, taken - taken // 2):  # iterations read on
        take(interrupted, part)
    resumed = train_loader(**mine)
    resumed.load_state_dict(interrupted.state_dict())
    iter(resumed)  # an iterator that nobody reads must not move the position
    assert equal(take(resumed, 4), whole[taken : taken + 4])


def test_train_epochs_read_on():
    loader = train_loader(batch_size=1)
    assert len(list(loader)) == len(loader) == EPOCH_BATCHES
    assert loader.state_dict()["position"] == EPOCH_BATCHES


@pytest.mark.parametrize("epoch_limit", [3, 3 / EPOCH_BATCHES])
def test_train_epoch_limit_begins_again(epoch_limit):
    whole = take(train_loader(), 3)
    assert equal(take(train_loader(epoch_limit=epoch_limit), 7), [*whole, *whole, whole[0]])


@pytest.mark.parametrize(("key", "value"), [("batch_size", 2), ("seed", 8)])
def test_train_state_of_other_batches_is_refused(key, value):
    with pytest.raises(DataError, match=rf"task\.{key}=.*, now it is task\.{key}={value}"):
        train_loader(**{key: value}).load_state_dict(train_loader().state_dict())


def test_train_batch_size_must_divide_over_the_ranks():
    with pytest.raises(DataError, match=r"task\.batch_size=6 .* 4 processes"):
        train_loader(world_size=4)


# Evaluation batches


@given(n=st.integers(1, 12), batch_size=st.integers(1, 7), world_size=st.integers(1, 3))
@settings(deadline=None)
def test_eval_counts_every_sequence_once(n, batch_size, world_size):
    parts = [draw(n, n_pairs, seed=n_pairs) for n_pairs in (1, 3)]
    expected = sorted(tuple(row) for part in parts for row in part.inputs.tolist())
    seen, lengths = [], set()
    for rank in range(world_size):
        loader = EvalSets(parts, batch_size=batch_size, rank=rank, world_size=world_size)
        lengths.add(len(loader))
        shapes = {batch.inputs.shape for batch in loader}
        assert len(shapes) == 1
        for inputs, targets in loader:
            real = (targets >= 0).any(1)
            seen += [tuple(row) for row in inputs[real].tolist()]
    assert sorted(seen) == expected
    assert len(lengths) == 1, "each rank has equally many batches"
