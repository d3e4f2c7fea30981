"""Every problem of state tracking against an independent, one by one, way to answer it."""

import itertools
import re

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError
from tasks.draws import seeded
from tasks.state_tracking import StateTrackingDataModule
from tasks.tracking import tracking_sequences
from tasks.tracking_problems import PROBLEMS, check_lengths

SYMBOLS = "_+-*=01234()"


def value(tokens: list[int]) -> int:
    """Let Python read an expression."""
    text = "".join(SYMBOLS[token] for token in tokens[:-1])
    assert tokens[-1] == SYMBOLS.index("=")
    assert re.fullmatch(r"[-+*()0-4]*", text)
    return 5 + eval(text) % 5  # of the ten characters above


def product(tokens: list[int], *, degree: int, even: bool = False) -> int:
    """Apply the permutations to (0, 1, ...), one after the other."""
    group = list(itertools.permutations(range(degree)))
    if even:
        signs = [torch.linalg.det(torch.eye(degree)[list(g)]) for g in group]
        group = [g for g, sign in zip(group, signs, strict=True) if sign > 0]
    places = list(range(degree))
    for token in tokens:
        places = [group[token - 1][place] for place in places]
    return 1 + group.index(tuple(places))


def depths(tokens: list[int], *, opening: int = 1) -> int:
    """Open brackets at the end; 3 closes all where it is no bracket."""
    depth = 0
    for token in tokens:
        depth += (token == opening) - (token == opening + 1)
        assert depth >= 0
    return depth


def since_reset(tokens: list[int]) -> list[int]:
    return tokens[len(tokens) - tokens[::-1].index(3) :] if 3 in tokens else tokens


def counted(tokens: list[int], *, letters: str) -> int:
    """Which letter has to come, by trying all."""
    text = "".join(letters[token - 1] for token in tokens)
    words = ["".join(letter * n for letter in letters) for n in range(1, 40)]
    assert any(word.startswith(text) for word in words)
    nexts = {word[len(text) : len(text) + 1] for word in words if word.startswith(text)}
    return {"": len(letters) + 1}.get(min(nexts), letters.find(min(nexts)) + 1)


ANSWERS = {
    "parity": lambda tokens: 1 + tokens.count(2) % 2,
    "modular": value,
    "modular_brackets": value,
    "S3": lambda tokens: product(tokens, degree=3),
    "S4": lambda tokens: product(tokens, degree=4),
    "A5": lambda tokens: product(tokens, degree=5, even=True),
    "S5": lambda tokens: product(tokens, degree=5),
    "S5_swaps": lambda tokens: product(tokens, degree=5),
    "aa": lambda tokens: 1 + len(tokens) % 2,
    "abab": lambda tokens: 1 + (len(tokens) - 1) % 4,
    "dyck1": lambda tokens: 1 + (depths(tokens) > 0),
    "reset_dyck1": lambda tokens: 1 + (depths(since_reset(tokens)) > 0),
    "shuffle2": lambda tokens: 1 + (depths(tokens) > 0) + 2 * (depths(tokens, opening=3) > 0),
    "counter2": lambda tokens: counted(tokens, letters="ab"),
    "counter3": lambda tokens: counted(tokens, letters="abc"),
}


@pytest.mark.parametrize(
    ("name", "last"),
    [(n, last) for n in PROBLEMS for last in (True, False) if last or not PROBLEMS[n].only_last],
)
def test_answers_are_those_of_the_tokens_until_there(name, last):
    batch = tracking_sequences(name, 40, lengths=(3, 24), last=last, generator=seeded(name))
    answers = set()
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        length = len(inputs) - inputs[::-1].count(0)
        asked = [t for t, target in enumerate(targets) if target != IGNORE_INDEX]
        if last:
            assert asked == [length - 1]
        elif name == "modular":
            assert asked == list(range(1, length, 2))
        else:
            assert asked == list(range(length))
        for t in asked:
            seen = inputs[: t + 1]
            # An operation asks for what stands before it, as the = at the end does.
            seen = [*seen[:-1], SYMBOLS.index("=")] if name == "modular" else seen
            assert targets[t] == ANSWERS[name](seen)
            answers.add(targets[t])
    assert batch.inputs.max() <= PROBLEMS[name].tokens
    assert len(answers) > 1 or (name.startswith("counter") and last)


@pytest.mark.parametrize("name", PROBLEMS)
def test_lengths_are_uniform_and_exact(name):
    problem = PROBLEMS[name]
    batch = tracking_sequences(name, 400, lengths=(4, 16), last=True, generator=seeded(name))
    lengths = (batch.inputs != 0).sum(1)
    expected = [n for n in range(4, 17) if n % problem.step == 0]
    assert sorted(set(lengths.tolist())) == expected
    counts = lengths.bincount()[expected]
    assert counts.min() > 400 / len(expected) / 3


@pytest.mark.parametrize(("name", "states"), [("S3", 6), ("A5", 60), ("S5_swaps", 120)])
def test_groups_are_whole_and_swaps_move_two(name, states):
    batch = tracking_sequences(name, 500, lengths=(30, 30), last=False, generator=seeded(1))
    assert batch.targets.unique().tolist() == list(range(1, states + 1))
    if name == "S5_swaps":
        assert len(batch.inputs.unique()) == 10
        assert all(len(batch.targets[:, t].unique()) <= 60 for t in range(30))


def data(**changes) -> StateTrackingDataModule:
    settings = {"train_length": (3, 12), "test_lengths": (12, 20, 32), "eval_sequences": 50}
    return StateTrackingDataModule(**{**settings, "eval_batch_size": 16} | changes)


def test_evaluation_has_every_range_and_is_the_same_for_every_seed():
    val, again = (list(data(seed=seed).val_dataloader()) for seed in (1, 2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(val, again, strict=True))
    lengths = torch.cat([(batch.inputs != 0).sum(1) for batch in val])
    for first, last in ((3, 12), (13, 20), (21, 32)):
        assert ((lengths >= first) & (lengths <= last)).sum() == 50
    test = list(data().test_dataloader())
    assert not torch.equal(val[0].inputs, test[0].inputs)


def test_where_all_positions_are_asked_those_of_the_range_count():
    batches = list(data(problem="S3", train_length=(12, 12)).test_dataloader())
    asked = torch.zeros(33, dtype=torch.int64)
    for batch in batches:
        places = (batch.targets != IGNORE_INDEX).nonzero()[:, 1] + 1
        asked += places.bincount(minlength=33)
    assert asked[1:].tolist() == [50] * 32


def test_longest_length_grows():
    growing = data(problem="S3", train_length=(12, 12), grow_from=4, grow_steps=16)
    lengths = [growing.training_batch(step).inputs.shape[1] for step in (0, 2, 4, 15, 16, 99)]
    assert lengths == [4, 5, 6, 11, 12, 12]
    assert torch.equal(growing.training_batch(7).inputs, growing.training_batch(7).inputs)
    counting = data(problem="counter3", test_lengths=(12, 20), grow_from=4, grow_steps=16)
    assert all(counting.training_batch(step).inputs.shape[1] % 3 == 0 for step in range(16))


def test_chance_is_published_or_that_of_the_most_frequent_answer():
    assert data().chance == 1 / 2
    assert data(problem="S5_swaps").chance == 1 / 60
    assert data(problem="dyck1").chance == pytest.approx(0.84, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "S6"}, r"task\.problem=S6 is none of parity, "),
        ({"train_length": (12, 3)}, r"task\.train_length=\[12, 3\]"),
        ({"train_length": (12,)}, r"task\.train_length=\[12\]"),
        ({"test_lengths": ()}, r"task\.test_lengths=\[\]"),
        ({"test_lengths": (20, 12)}, r"task\.test_lengths=\[20, 12\]"),
        ({"test_lengths": (2, 12)}, r"task\.test_lengths: from 3 to 2"),
        ({"problem": "counter3", "test_lengths": (40, 41)}, "multiples of 3 from 3 on"),
        ({"problem": "modular", "train_length": (3, 3)}, r"task\.train_length: from 3 to 3"),
        ({"problem": "modular_brackets", "targets": "all"}, r"task\.targets=all"),
        ({"grow_from": 4}, r"task\.grow_from and task\.grow_steps"),
        ({"grow_from": 13, "grow_steps": 5}, r"task\.grow_from=13"),
        ({"problem": "modular", "grow_from": 1, "grow_steps": 5}, r"task\.grow_from: from 1 to 1"),
    ],
)
def test_lengths_that_a_problem_does_not_have_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        data(**changes)


def test_what_is_checked_before_torch_is_what_the_data_checks():
    with pytest.raises(DataError, match="none of"):
        check_lengths("parit", train_length=(3, 4), test_lengths=(5,))


def test_prompts_are_numbers_and_another_problem_is_refused():
    assert data().encode("1 2 2") == [1, 2, 2]
    with pytest.raises(DataError, match="from 0 to 2"):
        data().encode("3")
    with pytest.raises(DataError, match=r"task\.problem"):
        data(problem="aa").load_state_dict(data().state_dict())
