"""The six problems of MAD, every sequence read again by rules written down a second time."""

from itertools import groupby

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError, LMBatch
from tasks.draws import seeded
from tasks.mad import MADDataModule
from tasks.mad_problems import BASELINES, MADSettings
from tasks.mad_sequences import fixed_values, mad_sequences

X = IGNORE_INDEX


def drawn(problem: str, n: int = 60, *, every_next: bool = False, **changes: object) -> LMBatch:
    settings = MADSettings(**{**vars(BASELINES[problem]), **changes})
    return mad_sequences(
        problem, n, settings=settings, every_next=every_next, generator=seeded(problem)
    )


def answers(tokens: list[int], *, keys: range, values: range) -> list[int]:
    """What is asked at every input: the next token where it is one of a value known before."""
    words = [
        (kind, list(group))
        for kind, group in groupby(
            tokens, lambda t: "key" if t in keys else "value" if t in values else "other"
        )
    ]
    known: dict[tuple[int, ...], list[int]] = {}
    found: list[int] = []
    key: tuple[int, ...] = ()
    for kind, word in words:
        found += word if kind == "value" and key in known else [X] * len(word)
        if kind == "value":
            assert known.setdefault(key, word) == word
        key = tuple(word) if kind == "key" else ()
    return found[1:]


@pytest.mark.parametrize("problem", ["recall", "noisy", "fuzzy"])
def test_recall_asks_for_values_of_keys_that_were_there_before(problem):
    batch, training = drawn(problem), drawn(problem, every_next=True)
    settings = BASELINES[problem]
    names = settings.vocab_size - settings.noise_vocab_size - (problem == "fuzzy")
    keys, values = range(names // 2), range(names // 2, names)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        tokens = [*inputs, targets[-1]]
        assert targets == answers(tokens, keys=keys, values=values)
        assert targets[-1] != X  # something is always asked
        if problem == "fuzzy":
            lengths = {len(list(g)) for known, g in groupby(tokens, keys.__contains__) if known}
            assert lengths == {settings.motif}
    assert torch.equal(training.inputs[:, 1:], training.targets[:, :-1])
    assert (training.targets != X).all()
    if problem == "fuzzy":
        runs = [
            len(list(group))
            for inputs in training.inputs.tolist()
            for known, group in groupby(inputs, keys.__contains__)
            if known
        ]
        assert set(runs) == {1, 2, 3}


def test_share_of_noise_is_that_of_the_pairs():
    inputs = drawn("noisy", 400, noise=0.6).inputs
    assert (inputs[:, :-1] >= 16).float().mean() == pytest.approx(0.6, abs=0.02)


def test_all_noise_but_one_pair_is_left():
    targets = drawn("noisy", 50, noise=0.999, seq_len=6).targets
    assert (targets != X).sum(1).tolist() == [1] * 50


def test_selective_copy_leaves_the_blanks_out():
    batch = drawn("selective_copy", vocab_size=9, seq_len=30, n_copy=5)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert len(inputs) == 30
        assert inputs[24:] == [8, *[7] * 5]
        assert targets == [*[X] * 25, *(token for token in inputs[:24] if token != 7)]
    places = (batch.inputs[:, :24] != 7).float().mean(0)
    assert places[-1] == 1  # no blank after the last token
    assert places[:8].min() > 0


def test_compression_asks_for_all_tokens():
    inputs, targets = drawn("compression")
    assert torch.equal(inputs, targets)
    assert (inputs[:, -1] == 15).all()
    assert inputs[:, :-1].unique().tolist() == list(range(15))


def test_memorised_values_are_the_same_in_all_sequences():
    batch, other = drawn("memorisation"), MADDataModule(problem="memorisation", seed=5)
    values: dict[int, int] = {}
    for inputs, targets in (*zip(*batch, strict=True), *zip(*other.training_batch(3), strict=True)):
        assert (inputs[1::2] == 255).all()
        assert (targets[::2] == X).all()
        for key, value in zip(inputs[::2].tolist(), targets[1::2].tolist(), strict=True):
            assert values.setdefault(key, value) == value
    assert len(set(fixed_values(256).tolist())) == len(fixed_values(256)) == 127
    assert set(values) <= set(range(127))
    assert set(values.values()) <= set(range(127, 255))


def test_every_epoch_has_every_sequence_once():
    data = MADDataModule(n_train=10, batch_size=4, seq_len=40)
    rows = torch.cat([data.training_batch(step).inputs for step in range(10)])
    epochs = [{tuple(row) for row in epoch.tolist()} for epoch in rows.split(10)]
    assert [len(epoch) for epoch in epochs] == [10] * 4
    assert epochs[0] == epochs[1] == epochs[2]
    assert not torch.equal(rows[:10], rows[10:20])
    assert torch.equal(data.training_batch(7).inputs, rows[28:32])


def test_evaluation_is_fixed_and_apart_from_training():
    options = {"problem": "fuzzy", "n_train": 50, "eval_sequences": 30, "eval_batch_size": 20}
    val, again = (
        list(MADDataModule(**options | {"n_train": n}, seed=seed).val_dataloader())
        for n, seed in ((50, 1), (60, 2))
    )
    test = list(MADDataModule(**options).test_dataloader())
    assert [len(batch.inputs) for batch in val] == [20, 20]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(val, again, strict=True))
    assert not torch.equal(val[0].inputs, test[0].inputs)
    on_answers = MADDataModule(**options, train_targets="answers").training_batch(0)
    assert (on_answers.targets == X).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "recal"}, r"task\.problem=recal is none of recall, fuzzy"),
        ({"n_copy": 3}, r"task\.n_copy: task\.problem=recall has vocab_size, seq_len, n_train"),
        ({"seq_len": 5}, r"task\.seq_len=5 must be even"),
        ({"seq_len": 2}, r"task\.seq_len=2 is too small .* at least 4"),
        ({"vocab_size": 1}, r"task\.vocab_size=1 is too small"),
        ({"problem": "fuzzy", "motif": 9}, r"task\.vocab_size=16 .* at least 19"),
        ({"problem": "fuzzy", "seq_len": 12}, r"task\.seq_len=12 .* at least 13"),
        ({"problem": "noisy", "noise_vocab_size": 31}, r"task\.vocab_size=32 .* at least 33"),
        ({"problem": "noisy", "noise": 1.0}, r"task\.noise=1\.0"),
        ({"problem": "selective_copy", "n_copy": 128}, r"task\.seq_len=256 .* at least 257"),
        ({"train_targets": "all"}, r"task\.train_targets=all"),
    ],
)
def test_sizes_that_hold_too_little_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        MADDataModule(**changes)


@pytest.mark.parametrize(
    ("problem", "sizes"),
    [
        ("recall", {"vocab_size": 2, "seq_len": 4}),
        ("noisy", {"vocab_size": 3, "noise_vocab_size": 1, "seq_len": 4}),
        ("fuzzy", {"vocab_size": 7, "seq_len": 13}),
        ("selective_copy", {"vocab_size": 3, "n_copy": 1, "seq_len": 3}),
        ("compression", {"vocab_size": 2, "seq_len": 2}),
        ("memorisation", {"vocab_size": 3, "seq_len": 2}),
    ],
)
def test_smallest_sizes_work(problem, sizes):
    data = MADDataModule(problem=problem, n_train=40, eval_sequences=40, **sizes)
    train, (test, *_) = data.training_batch(0), data.test_dataloader()
    assert train.inputs.shape[1] <= sizes["seq_len"]
    assert (test.targets[:40] != X).any(1).all()


def test_prompts_are_numbers_and_another_problem_is_refused():
    data = MADDataModule()
    assert data.decode(data.encode("3 12 4")) == "3 12 4"
    with pytest.raises(DataError, match="from 0 to 15"):
        data.encode("16")
    compression = MADDataModule(problem="compression")
    with pytest.raises(DataError, match=r"task\.problem"):
        compression.load_state_dict(data.state_dict())
    with pytest.raises(DataError, match="continues no prompt"):
        compression.encode("3")


def test_sizes_that_all_tasks_of_answers_have_are_checked():
    with pytest.raises(DataError, match=r"task\.eval_sequences=0"):
        MADDataModule(eval_sequences=0)
