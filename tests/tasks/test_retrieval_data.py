from types import SimpleNamespace

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError
from tasks.retrieval import RetrievalDataModule


def last_value(keys, values, query: int) -> int:
    return [v for k, v in zip(keys.tolist(), values.tolist(), strict=True) if k == query][-1]


def test_capacity_uses_every_key_and_value_once():
    data = RetrievalDataModule(setting="capacity", n_keys=12, batch_size=5)
    batch = data.training_batch(0)
    for x in (batch.keys, batch.values):
        assert x.shape == (5, 12)
        assert (x.sort(1).values == torch.arange(12)).all()


def test_update_draws_with_replacement_at_twice_the_length():
    data = RetrievalDataModule(setting="update", n_keys=30, batch_size=64)
    batch = data.training_batch(0)
    assert batch.keys.shape == batch.values.shape == (64, 60)
    counts = torch.bincount(batch.keys.flatten(), minlength=30)
    assert counts.float().std() < 3 * (64 * 2) ** 0.5  # uniform
    assert (batch.keys.sort(1).values.diff(dim=1) == 0).any()  # repeats


@pytest.mark.parametrize("setting", ["capacity", "update"])
def test_target_is_the_last_value_of_the_query(setting):
    data = RetrievalDataModule(setting=setting, n_keys=6, batch_size=50, eval_sequences=9)
    for batch in (data.training_batch(3), data.evaluation_batch("val", 0, seq_len=data.seq_len)):
        for keys, values, queries, targets in zip(*batch, strict=True):
            for query, target in zip(queries.tolist(), targets.tolist(), strict=True):
                if target != IGNORE_INDEX:
                    assert target == last_value(keys, values, query)


def test_training_queries_follow_positions():
    """A key that occurs twice as often is asked for twice as often."""
    data = RetrievalDataModule(setting="update", n_keys=2, batch_size=4000)
    batch = data.training_batch(0)
    share = (batch.keys == 0).double().mean(1)
    asked = (batch.queries[:, 0] == 0).double()
    for value in (0.25, 0.5, 0.75):
        assert asked[share == value].mean().item() == pytest.approx(value, abs=0.06)


def test_evaluation_reads_every_key_that_occurs_once():
    data = RetrievalDataModule(setting="update", n_keys=20, eval_length="n_keys")
    batch = next(iter(data.val_dataloader()))
    assert batch.keys.shape == (20, 20)
    assert next(iter(data.test_dataloader())).keys.shape == (20, 40)
    for keys, queries, targets in zip(batch.keys, batch.queries, batch.targets, strict=True):
        asked = queries[targets != IGNORE_INDEX].tolist()
        assert asked == sorted(set(keys.tolist()))
    assert (batch.targets != IGNORE_INDEX).any(0).all()  # no column of nothing


def test_evaluation_query_cap_keeps_the_first_keys():
    data = RetrievalDataModule(n_keys=30, max_queries=7)
    batch = data.evaluation_batch("val", 0, seq_len=30)
    assert (batch.queries == torch.arange(7)).all()
    assert (batch.targets != IGNORE_INDEX).all()


def test_draws_follow_from_seed_and_number_alone():
    def batch(seed: int, step: int):
        return RetrievalDataModule(n_keys=9, seed=seed).training_batch(step)

    state = torch.random.get_rng_state()
    first = batch(1, 5)
    torch.rand(3)
    assert all((x == y).all() for x, y in zip(first, batch(1, 5), strict=True))
    assert not (first.keys == batch(1, 6).keys).all()
    assert not (first.keys == batch(2, 5).keys).all()
    torch.random.set_rng_state(state)
    data = RetrievalDataModule(n_keys=9)
    val, test = (data.evaluation_batch(split, 0, seq_len=9) for split in ("val", "test"))
    assert not (val.keys == test.keys).all()


def test_ranks_share_a_batch():
    data = RetrievalDataModule(n_keys=5, batch_size=4, eval_sequences=5)

    def share(rank, world_size):
        limit = {"limit_train_batches": 1.0}
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, **limit)

    whole = data.training_batch(0)
    parts = []
    for rank in (0, 1):
        share(rank, 2)
        parts.append(next(iter(data.train_dataloader())))
        sizes = [len(batch.keys) for batch in data.val_dataloader()]
        assert sizes == [3 - rank]
    assert (torch.cat([p.keys for p in parts]) == whole.keys).all()
    share(0, 3)
    with pytest.raises(DataError, match="batch_size=4"):
        data.train_dataloader()
    share(0, 6)
    with pytest.raises(DataError, match="eval_sequences=5"):
        data.val_dataloader()


@pytest.mark.parametrize(
    "bad",
    [{"setting": "both"}, {"n_keys": 0}, {"batch_size": -1}, {"eval_length": "half"}],
    ids=str,
)
def test_impossible_task_is_refused(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        RetrievalDataModule(**bad)


def test_checkpoint_of_another_task_is_refused():
    state = RetrievalDataModule(n_keys=5).state_dict()
    RetrievalDataModule(n_keys=5).load_state_dict(state)
    with pytest.raises(DataError, match="n_keys=5"):
        RetrievalDataModule(n_keys=6).load_state_dict(state)


def test_update_sequences_can_have_any_length():
    data = RetrievalDataModule(setting="update", n_keys=5, seq_len=40)
    assert data.training_batch(0).keys.shape[1] == 40
    assert next(iter(data.test_dataloader())).keys.shape[1] == 40
    assert RetrievalDataModule(setting="update", n_keys=5).training_batch(0).keys.shape[1] == 10
    with pytest.raises(DataError, match=r"task\.seq_len=7: task\.setting=capacity"):
        RetrievalDataModule(n_keys=5, seq_len=7)
