from itertools import chain

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError
from tasks.pairs import EncodedPairs, EvalPairs, TrainPairs, cut_batches, cut_packed

SPECIAL = {"pad": 0, "bos": 1, "eos": 2}


def make(n: int = 200, seed: int = 0) -> EncodedPairs:
    """Pairs whose ids are all different, so that a token tells its place."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for first in (10, 100_000):
        lengths = torch.randint(1, 30, (n,), generator=generator)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        sides += [torch.arange(first, first + int(ends[-1]), dtype=torch.int32), ends]
    return EncodedPairs(*sides)


def train(pairs: EncodedPairs, **changes) -> TrainPairs:
    return TrainPairs(pairs, **{"batch_tokens": 120, "seed": 3, "special": SPECIAL} | changes)


def test_batch_is_the_pairs_with_start_end_and_padding() -> None:
    ids, ends = torch.tensor([5, 6, 7], dtype=torch.int32), torch.tensor([0, 1, 3])
    pairs = EncodedPairs(ids, ends, ids + 10, ends)
    batch = pairs.batch(torch.tensor([1, 0, -1]), **SPECIAL)
    x = IGNORE_INDEX
    assert batch.source.tolist() == [[6, 7, 2], [5, 2, 0], [2, 0, 0]]
    assert batch.inputs.tolist() == [[1, 16, 17], [1, 15, 0], [1, 0, 0]]
    assert batch.targets.tolist() == [[16, 17, 2], [15, 2, x], [x, x, x]]
    assert batch.numbers.tolist() == [1, 0, -1]


def test_batches_hold_every_pair_once_and_no_more_tokens_than_allowed() -> None:
    pairs = make()
    for limit in (1, 31, 120, 100_000):
        batches = cut_batches(pairs, batch_tokens=limit, order=torch.Generator().manual_seed(1))
        assert torch.cat(batches).sort().values.tolist() == list(range(200))
        longer = torch.maximum(*pairs.lengths())
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            size = len(batch) * int(longer[batch].max())
            assert size <= limit or len(batch) == 1
            if after is not None:  # one more would not have fitted
                assert (len(batch) + 1) * int(longer[after[0]]) > limit


def test_packed_pairs_stand_one_behind_the_other_and_fill_rows() -> None:
    ids, ends = torch.tensor([5, 6, 7], dtype=torch.int32), torch.tensor([0, 1, 3])
    pairs = EncodedPairs(ids, ends, torch.tensor([15, 16], dtype=torch.int32), ends.clamp(max=2))
    batch = pairs.packed(torch.tensor([1, 0, 1]), row_tokens=5, **SPECIAL)
    x = IGNORE_INDEX
    assert batch.source.tolist() == [[6, 7, 2, 5, 2, 0], [6, 7, 2, 0, 0, 0]]
    assert batch.inputs.tolist() == [[1, 16, 1, 15, 0], [1, 16, 0, 0, 0]]
    assert batch.targets.tolist() == [[16, 2, 15, 2, x], [16, 2, x, x, x]]
    assert batch.source_starts.int().tolist() == [[1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 0, 0]]
    assert batch.input_starts.int().tolist() == [[1, 0, 1, 0, 1], [1, 0, 1, 0, 0]]
    nothing = pairs.packed(torch.tensor([], dtype=torch.int64), row_tokens=5, **SPECIAL)
    assert (nothing.source.tolist(), nothing.targets.tolist()) == ([[0]], [[x]])


def test_packed_batches_hold_every_pair_once_and_no_more_tokens_than_allowed() -> None:
    pairs, (source, target) = make(), make().lengths()
    for limit in (1, 31, 120, 100_000):
        batches = cut_packed(pairs, batch_tokens=limit, order=torch.Generator().manual_seed(1))
        assert torch.cat(batches).sort().values.tolist() == list(range(200))
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            size = max(int(source[batch].sum()), int(target[batch].sum()))
            assert size <= limit or len(batch) == 1
            if after is not None:
                more = torch.cat([batch, after[:1]])
                assert max(int(source[more].sum()), int(target[more].sum())) > limit


@pytest.mark.parametrize("ranks", [1, 3])
def test_packed_epoch_has_every_token_once_over_the_ranks(ranks: int) -> None:
    pairs = make()
    loaders = [train(pairs, packing=True, rank=r, world_size=ranks) for r in range(ranks)]
    batches = [list(loader) for loader in loaders]
    assert len({len(of_rank) for of_rank in batches}) == 1
    for side in ("source", "inputs"):
        ids = torch.cat([getattr(b, side).flatten() for of_rank in batches for b in of_rank])
        of_pairs = pairs.source if side == "source" else pairs.target
        assert torch.equal(ids[ids > 2].sort().values, of_pairs.long())
    for batch in chain(*batches):
        kept = batch.targets[:, :-1] != IGNORE_INDEX
        follows = kept & ~batch.input_starts[:, 1:]
        assert torch.equal(batch.targets[:, :-1][follows], batch.inputs[:, 1:][follows])


def test_epochs_have_all_pairs_in_another_order_that_seed_and_number_decide() -> None:
    pairs = make()
    loader = train(pairs)
    first, second = ([b.numbers.tolist() for b in loader] for _ in range(2))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(200))
    assert first != second
    again = train(pairs)
    assert [[b.numbers.tolist() for b in again] for _ in range(2)] == [first, second]
    assert [b.numbers.tolist() for b in train(pairs, seed=4)] != first


@pytest.mark.parametrize("cut", [1, 7, 30, 75])
def test_stored_position_goes_on_with_the_next_batch(cut: int) -> None:
    pairs = make()
    whole = train(pairs)
    expected = [b.numbers.tolist() for _ in range(3) for b in whole]
    loader, seen = train(pairs), []
    while len(seen) < cut:
        for batch in loader:
            seen.append(batch.numbers.tolist())
            if len(seen) == cut:
                break
    resumed = train(pairs)
    resumed.load_state_dict(loader.state_dict())
    seen += [b.numbers.tolist() for b in resumed]
    assert seen == expected[: len(seen)]


def test_ranks_share_every_batch_and_the_position_is_the_same_for_all() -> None:
    pairs = make()
    for world_size in (2, 3):
        loaders = [train(pairs, rank=r, world_size=world_size) for r in range(world_size)]
        for whole, *parts in zip(train(pairs), *loaders, strict=True):
            found = [i for part in parts for i in part.numbers.tolist() if i >= 0]
            assert sorted(found) == sorted(whole.numbers.tolist())
        assert all(loader.state_dict() == loaders[0].state_dict() for loader in loaders)


def test_evaluation_counts_every_pair_once_for_any_number_of_ranks() -> None:
    pairs = make()
    for world_size in (1, 2, 5):
        loaders = [
            EvalPairs(pairs, batch_tokens=60, special=SPECIAL, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        assert len({len(loader) for loader in loaders}) == 1
        found = torch.cat([batch.numbers for loader in loaders for batch in loader])
        assert found[found >= 0].sort().values.tolist() == list(range(200))


def test_limited_epoch_begins_again_and_other_batches_are_refused() -> None:
    loader = train(make(), epoch_limit=4)
    seen = [b.numbers.tolist() for b in loader][:8]
    assert seen[:4] == seen[4:]
    with pytest.raises(DataError, match=r"task\.batch_tokens=120, now it is task\.batch_tokens=60"):
        train(make(), batch_tokens=60).load_state_dict(loader.state_dict())
