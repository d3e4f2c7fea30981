"""Programs to execute, a statement after the other, with the value of every print.

The generator of Irie et al. 2021 (arXiv 2106.06295), which makes programs as its code does: from
the same draws of Python's `random` the same tokens. Learning to execute is Zaremba and Sutskever
2014 (arXiv 1410.4615).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from fwlight.types import DataError

NAMES = ("x", "y", "z", "a", "b", "c", "d", "e", "f", "g")
LOW, HIGH = -8, 16
"""Counting turns back rather than leave them."""
DIGITS = 10
"""Assigned and compared values are 0 to 9."""
BLANK = "_"
"""What is answered where nothing is printed."""
CONDITIONAL_ASSIGN = ("first_only", "always")

ANSWERS = (BLANK, *map(str, range(LOW, HIGH + 1)))
SYMBOLS = (*("=", "++", "--", "print", "if", "<", ">", ":", ";"), *NAMES)
WORDS = ("<pad>", *ANSWERS, *SYMBOLS)
"""All tokens of programs and answers; digits are values too."""


@dataclass(frozen=True)
class Language:
    """What programs are drawn from.

    Attributes:
        n_variables: Names in use, 1 to 10.
        n_statements: Statements of a program; the first assigns, the last prints.
        conditional_assign: Whether an assignment whose condition holds takes effect `always`, or
            for the variable's `first_only`, as in the code of the paper: one that is defined keeps
            its value.

    Raises:
        DataError: A number is out of range or the option unknown.
    """

    n_variables: int = 3
    n_statements: int = 100
    conditional_assign: str = "first_only"

    def __post_init__(self) -> None:
        if not 1 <= self.n_variables <= len(NAMES):
            raise DataError(f"task.n_variables={self.n_variables} must be from 1 to {len(NAMES)}")
        if self.n_statements < 2:
            raise DataError(
                f"task.n_statements={self.n_statements} must be at least 2: the first assigns, the "
                "last prints"
            )
        if self.conditional_assign not in CONDITIONAL_ASSIGN:
            raise DataError(
                f"task.conditional_assign={self.conditional_assign} is none of "
                f"{', '.join(CONDITIONAL_ASSIGN)}"
            )


DATA = ("generated", "published")
PUBLISHED = (Language(3), Language(5))


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration; see `Language` and `check_published`."""
    rules = {"conditional_assign": task["conditional_assign"]}
    language = Language(task["n_variables"], task["n_statements"], **rules)
    for each in task["test_statements"] or ():
        Language(n_statements=each)
    check_published(task["data"], language)


def check_published(data: str, language: Language) -> None:
    """Check that there are programs of a source.

    Raises:
        DataError: It is unknown, or publishes no programs of this language.
    """
    if data not in DATA:
        raise DataError(f"task.data={data} is none of {', '.join(DATA)}")
    if data == "published" and language not in PUBLISHED:
        raise DataError(
            "task.data=published has 3 or 5 variables (task.n_variables), 100 statements "
            "(task.n_statements) and task.conditional_assign=first_only"
        )


@dataclass
class Program:
    """One of them, as it grows."""

    language: Language
    draw: Random
    tokens: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)
    """Of the variables that are defined, in the order in which they were."""

    def statement(self, kind: int, *, holds: bool | None = None) -> None:
        """Add a statement; `holds` says whether its condition does, None that it has none."""
        (self._assign, self._count, self._print, self._condition)[kind](holds)

    def _say(self, *tokens: str, answer: str = BLANK) -> None:
        self.tokens += tokens
        self.answers += [BLANK] * (len(tokens) - 1) + [answer]

    def _defined(self) -> str:
        return list(self.values)[self.draw.randrange(len(self.values))]

    def _assign(self, holds: bool | None) -> None:
        name = NAMES[self.draw.randrange(self.language.n_variables)]
        value = self.draw.randrange(DIGITS)
        kept = name in self.values and self.language.conditional_assign == "first_only"
        if holds is None or (holds and not kept):
            self.values[name] = value
        self._say(name, "=", str(value), ";")

    def _count(self, holds: bool | None) -> None:
        name, up = self._defined(), self.draw.randrange(2) == 0
        value = self.values[name]
        if (up and value == HIGH) or (not up and value == LOW):
            up = not up
        if holds is not False:
            self.values[name] = value + (1 if up else -1)
        self._say(name, "++" if up else "--", ";")

    def _print(self, holds: bool | None) -> None:
        name = self._defined()
        answer = BLANK if holds is False else str(self.values[name])
        self._say("print", name, ";", answer=answer)

    def _condition(self, _: bool | None) -> None:
        less = self.draw.randrange(2) == 0
        name, bound = self._defined(), self.draw.randrange(DIGITS)
        kind = self.draw.randrange(3)
        self._say("if", name, "<" if less else ">", str(bound), ":")
        value = self.values[name]
        self.statement(kind, holds=value < bound if less else value > bound)


def program(language: Language, draw: Random) -> tuple[list[str], list[str]]:
    """Return the tokens of a program and the answer at each of them."""
    made = Program(language, draw)
    made.statement(0)
    for _ in range(language.n_statements - 2):
        made.statement(draw.randrange(4))
    made.statement(2)
    return made.tokens, made.answers
