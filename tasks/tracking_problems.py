"""The problems of state tracking by name, and what lengths they have; known before torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fwlight.types import DataError

Targets = Literal["all", "last"]


@dataclass(frozen=True)
class Problem:
    """What is known of a problem without drawing it.

    Args:
        tokens: Largest number of a token of its inputs; 0 pads.
        answers: Number of different answers.
        targets: Where the published experiments ask: at the `last` token, or at `all`.
        step: Its lengths are multiples of this.
        least: Its shortest length.
        chance: Share of right answers of a guess; None: that of the most frequent answer.
        only_last: No other position has an answer.
        whole: A shorter sequence is not the beginning of a longer one.
    """

    tokens: int
    answers: int
    targets: Targets = "all"
    step: int = 1
    least: int = 1
    chance: float | None = None
    only_last: bool = False
    whole: bool = False


def _group(order: int, *, states: int | None = None) -> Problem:
    return Problem(order, order, chance=1 / (states or order))


PROBLEMS: Mapping[str, Problem] = {
    "parity": Problem(2, 2, "last", chance=1 / 2),
    "modular": Problem(9, 5, "last", step=2, least=2, chance=1 / 5, whole=True),
    "modular_brackets": Problem(11, 5, "last", least=2, chance=1 / 5, only_last=True, whole=True),
    "S3": _group(6),
    "S4": _group(24),
    "A5": _group(60),
    "S5": _group(120),
    # After t swaps all permutations have the sign of t: 60 of the 120.
    "S5_swaps": _group(120, states=60),
    "aa": Problem(1, 2),
    "abab": Problem(2, 4),
    "dyck1": Problem(2, 2),
    "reset_dyck1": Problem(3, 2),
    "shuffle2": Problem(4, 4),
    "counter2": Problem(2, 3, step=2, least=2, whole=True),
    "counter3": Problem(3, 4, step=3, least=3, whole=True),
}


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration; see `check_lengths`."""
    check_lengths(
        task["problem"],
        train_length=task["train_length"],
        test_lengths=task["test_lengths"],
        grow_from=task["grow_from"],
        grow_steps=task["grow_steps"],
        targets=task["targets"],
    )


def check_lengths(
    name: str,
    *,
    train_length: Sequence[int],
    test_lengths: Sequence[int],
    grow_from: int | None = None,
    grow_steps: int = 0,
    targets: Targets | None = None,
) -> None:
    """Check that a problem has sequences of every length that is asked for.

    Raises:
        DataError: It has not, or there is no such problem.
    """
    if name not in PROBLEMS:
        raise DataError(f"task.problem={name} is none of {', '.join(PROBLEMS)}")
    problem = PROBLEMS[name]
    if targets == "all" and problem.only_last:
        raise DataError(f"task.targets=all: task.problem={name} has an answer at its end alone")
    if len(train_length) != 2 or train_length[0] > train_length[1]:
        raise DataError(
            f"task.train_length={list(train_length)} must be the shortest and the longest length"
        )
    _check_range(name, problem, "train_length", *train_length)
    if not test_lengths or list(test_lengths) != sorted(set(test_lengths)):
        raise DataError(f"task.test_lengths={list(test_lengths)} must be numbers that grow")
    for first, last in ranges(train_length[0], test_lengths):
        _check_range(name, problem, "test_lengths", first, last)
    if (grow_from is None) != (grow_steps == 0):
        raise DataError("task.grow_from and task.grow_steps are given together")
    if grow_from is not None:
        if grow_from > train_length[1]:
            raise DataError(f"task.grow_from={grow_from} is above the longest length")
        _check_range(name, problem, "grow_from", min(train_length[0], grow_from), grow_from)


def ranges(shortest: int, longest: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last length of ranges of lengths that follow one another."""
    return list(zip((shortest, *(end + 1 for end in longest[:-1])), longest, strict=True))


def _check_range(name: str, problem: Problem, key: str, first: int, last: int) -> None:
    if not lengths_within(problem, first, last):
        unit = f"multiples of {problem.step} " if problem.step > 1 else ""
        raise DataError(
            f"task.{key}: from {first} to {last} there is no length of task.problem={name}, whose "
            f"lengths are {unit}from {problem.least} on"
        )


def lengths_within(problem: Problem, first: int, last: int) -> range:
    """Return the lengths of a problem from `first` to `last`."""
    low = max(first, problem.least)
    return range(-(-low // problem.step) * problem.step, last + 1, problem.step)
