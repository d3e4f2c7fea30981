"""Nested list operations, as in ListOps (Nangia and Bowman 2018, arXiv 1804.06028).

Trees are drawn as the code of Irie et al. 2021 (arXiv 2106.06295) draws them: from the same draws
of Python's `random` the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fwlight.types import DataError

P_OPERATOR = 0.25
MOST_LEVELS = 20
MOST_ARGUMENTS = 5
DIGITS = tuple(map(str, range(10)))

Values = Sequence[int]
OPERATORS: dict[str, Callable[[Values], int]] = {
    "MIN": min,
    "MAX": max,
    "FIRST": lambda values: values[0],
    "LAST": lambda values: values[-1],
    "MED": lambda values: sorted(values)[len(values) // 2],
    "SUM_MOD": lambda values: sum(values) % 10,
}
PUBLISHED = ("MIN", "MAX", "FIRST")
WORDS = ("<pad>", *DIGITS, "]", *(f"[{name}" for name in OPERATORS))

Tree = int | tuple[str, tuple["Tree", ...]]


@dataclass(frozen=True)
class Grammar:
    """What expressions are drawn from.

    Attributes:
        depth: Brackets within brackets: at least 1, at most 19.
        operators: Names of `OPERATORS`.

    Raises:
        DataError: The depth is out of range or an operator unknown.
    """

    depth: int = 10
    operators: tuple[str, ...] = PUBLISHED

    def __post_init__(self) -> None:
        if not 1 <= self.depth < MOST_LEVELS:
            raise DataError(f"task.depth={self.depth} must be from 1 to {MOST_LEVELS - 1}")
        if unknown := set(self.operators) - set(OPERATORS):
            known = ", ".join(OPERATORS)
            raise DataError(f"task.operators: {min(unknown)} is none of {known}")
        if not self.operators or len(set(self.operators)) < len(self.operators):
            raise DataError("task.operators must name at least one, and none twice")


def expression(grammar: Grammar, draw: Random) -> tuple[list[str], int]:
    """Return the tokens of an expression of the grammar's depth, and its value.

    Trees of other depths are drawn and thrown away: of depth 10 it takes about 65, of 15 about 180.
    """
    while True:
        tree = _tree(grammar.operators, draw, 1)
        if nesting(tree) == grammar.depth:
            return tokens(tree), value(tree)


def _tree(operators: Sequence[str], draw: Random, level: int) -> Tree:
    # The root's number is drawn too, though it is always an operator.
    number = draw.random() if level < MOST_LEVELS else 1.0
    if number > P_OPERATOR and level > 1:
        return draw.choice(range(10))
    n = draw.randint(2, MOST_ARGUMENTS)
    arguments = tuple(_tree(operators, draw, level + 1) for _ in range(n))
    return draw.choice(operators), arguments


def nesting(tree: Tree) -> int:
    """Return the number of brackets around the innermost digit."""
    return 0 if isinstance(tree, int) else 1 + max(map(nesting, tree[1]))


def tokens(tree: Tree) -> list[str]:
    """Return a tree as it is written."""
    if isinstance(tree, int):
        return [str(tree)]
    inner = [token for argument in tree[1] for token in tokens(argument)]
    return [f"[{tree[0]}", *inner, "]"]


def value(tree: Tree) -> int:
    """Return what an expression gives."""
    return tree if isinstance(tree, int) else OPERATORS[tree[0]]([value(x) for x in tree[1]])


DATA = ("generated", "published")


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration; see `Grammar` and `check_published`."""
    check_published(task["data"], Grammar(task["depth"], tuple(task["operators"])))


def check_published(data: str, grammar: Grammar) -> None:
    """Check that there are expressions of a source.

    Raises:
        DataError: It is unknown, or publishes no expressions of this grammar.
    """
    if data not in DATA:
        raise DataError(f"task.data={data} is none of {', '.join(DATA)}")
    if data == "published" and (grammar.depth not in (10, 15) or grammar.operators != PUBLISHED):
        raise DataError(
            "task.data=published has task.depth=10 or 15 and "
            f"task.operators=[{','.join(PUBLISHED)}]"
        )
