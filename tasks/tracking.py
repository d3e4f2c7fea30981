"""Sequences whose answers need a state: parity, arithmetic, groups, formal languages.

Parity and modular arithmetic are those of Grazzi et al. (2025, arXiv 2411.12537), the word problems
of groups those of Merrill et al. (2024, arXiv 2404.08819) and Siems et al. (2025, arXiv
2502.10297), the formal languages those of Irie et al. (2023, arXiv 2310.16076). Of a language, what
is asked for is which symbols may come next, the end among them.
"""

import itertools
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor

from fwlight.types import IGNORE_INDEX, LMBatch
from tasks.tracking_problems import PROBLEMS, lengths_within

Drawn = tuple[Tensor, Tensor]
"""Inputs and targets, both `[n, T]`; beyond a row's length neither is read."""


def tracking_sequences(
    name: str,
    n: int,
    *,
    lengths: tuple[int, int],
    asked_from: int = 1,
    last: bool,
    generator: Generator,
) -> LMBatch:
    """Draw `n` sequences `[n, T]`, T the longest of them; what a row lacks is 0 without a target.

    Args:
        name: One of `tasks.tracking_problems.PROBLEMS`.
        n: How many.
        lengths: The shortest and the longest; each row's is drawn uniformly from those between.
        asked_from: The first position, from 1, that is asked.
        last: Ask at the last position of a row alone.
        generator: Where all draws come from.
    """
    choices = torch.tensor(lengths_within(PROBLEMS[name], *lengths))
    of_row = choices[torch.randint(len(choices), (n,), generator=generator)]
    inputs, targets = _DRAWS[name](of_row, generator)
    positions = torch.arange(1, inputs.shape[1] + 1)
    beyond = positions > of_row[:, None]
    asked = positions == of_row[:, None] if last else ~beyond & (positions >= asked_from)
    return LMBatch(inputs.masked_fill(beyond, 0), targets.masked_fill(~asked, IGNORE_INDEX))


def _parity(lengths: Tensor, generator: Generator) -> Drawn:
    """Tokens 1 and 2; the answer is 1 + (number of twos mod 2)."""
    inputs = _integers(lengths, 2, generator) + 1
    return inputs, 1 + (inputs == 2).cumsum(1) % 2


_PLUS, _MINUS, _TIMES, _EQUALS, _ZERO, _OPEN, _CLOSE = 1, 2, 3, 4, 5, 10, 11
_MODULUS = 5


def _modular(lengths: Tensor, generator: Generator) -> Drawn:
    """`3 + 2 * 4 =` modulo 5, products first; at every operation the value until there."""
    digits = _integers(lengths, _MODULUS, generator)
    operations = _PLUS + _integers(lengths, 3, generator)
    positions = torch.arange(digits.shape[1])
    inputs = torch.where(positions % 2 == 0, _ZERO + digits, operations)
    inputs[positions == lengths[:, None] - 1] = _EQUALS
    targets = torch.full_like(inputs, IGNORE_INDEX)
    total, term = torch.zeros_like(lengths), digits[:, 0]
    for t in range(1, digits.shape[1], 2):
        targets[:, t] = _ZERO + (total + term) % _MODULUS
        if t + 1 < digits.shape[1]:
            operation, digit = inputs[:, t], digits[:, t + 1]
            times = operation == _TIMES
            total = torch.where(times, total, total + term)
            signed = torch.where(operation == _MINUS, -digit, digit)
            term = torch.where(times, term * digit, signed) % _MODULUS
    return inputs, targets


def _modular_brackets(lengths: Tensor, generator: Generator) -> Drawn:
    """`( 3 - ( - 2 * 4 ) ) =` modulo 5: expressions of an exact number of tokens."""
    rows = [_expression(length - 1, generator) for length in lengths.tolist()]
    inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    for row, (tokens, value) in enumerate(rows):
        inputs[row, : len(tokens) + 1] = torch.tensor([*tokens, _EQUALS])
        targets[row, len(tokens)] = _ZERO + value % _MODULUS
    return inputs, targets


def _expression(length: int, generator: Generator) -> tuple[list[int], int]:
    """A digit; -digit; (x) of one or two tokens; (x op y) with a uniform share of the rest."""

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    if length == 1:
        digit = below(_MODULUS)
        return [_ZERO + digit], digit
    if length == 2:
        digit = below(_MODULUS)
        return [_MINUS, _ZERO + digit], -digit
    if length <= 4:
        inner, value = _expression(length - 2, generator)
        return [_OPEN, *inner, _CLOSE], value
    left_length = 1 + below(length - 4)
    left, x = _expression(left_length, generator)
    right, y = _expression(length - 3 - left_length, generator)
    operation = _PLUS + below(3)
    value = {_PLUS: x + y, _MINUS: x - y, _TIMES: x * y}[operation]
    return [_OPEN, *left, operation, *right, _CLOSE], value % _MODULUS


def _group(degree: int, *, even: bool = False, swaps: bool = False) -> Callable[..., Drawn]:
    """Token 1 + a for the element a; the answer is 1 + the product, the newest applied last."""

    def draw(lengths: Tensor, generator: Generator) -> Drawn:
        table, letters = _products(degree, even=even, swaps=swaps)
        drawn = letters[_integers(lengths, len(letters), generator)]
        states, state = [], torch.zeros_like(lengths)
        for element in drawn.unbind(1):
            state = table[element, state]
            states.append(state)
        return drawn + 1, torch.stack(states, 1) + 1

    return draw


@cache
def _products(degree: int, *, even: bool, swaps: bool) -> tuple[Tensor, Tensor]:
    """The table `[a, b]` of a after b, elements in lexicographic order, and what is drawn from."""
    elements = list(itertools.permutations(range(degree)))
    if even:
        elements = [element for element in elements if _inversions(element) % 2 == 0]
    number = {element: i for i, element in enumerate(elements)}
    table = [[number[tuple(a[i] for i in b)] for b in elements] for a in elements]
    moved = [sum(i != x for i, x in enumerate(element)) for element in elements]
    letters = [i for i, m in enumerate(moved) if m == 2 or not swaps]
    return torch.tensor(table), torch.tensor(letters)


def _inversions(element: tuple[int, ...]) -> int:
    return sum(x > y for x, y in itertools.combinations(element, 2))


def _aa(lengths: Tensor, generator: Generator) -> Drawn:
    """(aa)*: 1 the end may come, 2 it may not."""
    positions = _positions(lengths)
    return torch.ones_like(positions), 1 + positions % 2


def _abab(lengths: Tensor, generator: Generator) -> Drawn:
    """(abab)*: the place in abab, from 1."""
    place = (_positions(lengths) - 1) % 4
    return 1 + place % 2, 1 + place


def _dyck(lengths: Tensor, generator: Generator) -> Drawn:
    """Dyck-1: brackets 1 and 2, as likely as each other but for 1 at depth 0."""
    return _brackets(lengths, generator, reset=0.0)


def _reset_dyck(lengths: Tensor, generator: Generator) -> Drawn:
    """Dyck-1 in which 3, one token of 16, begins anew."""
    return _brackets(lengths, generator, reset=1 / 16)


def _brackets(lengths: Tensor, generator: Generator, *, reset: float) -> Drawn:
    """The answer is 1 at depth 0, where the end may come and 2 may not, else 2."""
    opens = _integers(lengths, 2, generator) == 0
    resets = torch.rand(opens.shape, generator=generator) < reset
    depth, inputs, targets = torch.zeros_like(lengths), [], []
    for wanted, begins in zip(opens.unbind(1), resets.unbind(1), strict=True):
        opened = wanted | (depth == 0)
        depth = torch.where(opened, depth + 1, depth - 1).masked_fill(begins, 0)
        inputs.append(torch.where(opened, 1, 2).masked_fill(begins, 3))
        targets.append(1 + (depth > 0))
    return torch.stack(inputs, 1), torch.stack(targets, 1)


def _shuffle(lengths: Tensor, generator: Generator) -> Drawn:
    """Two Dyck-1 shuffled, 1 2 and 3 4; the answer says which of 2 and 4 may come."""
    kinds = _integers(lengths, 2, generator)
    opens = _integers(lengths, 2, generator) == 0
    depths, inputs, targets = torch.zeros(len(lengths), 2, dtype=torch.int64), [], []
    for kind, wanted in zip(kinds.unbind(1), opens.unbind(1), strict=True):
        depth = depths.gather(1, kind[:, None])[:, 0]
        opened = wanted | (depth == 0)
        change = torch.where(opened, 1, -1)
        depths = depths.scatter_add(1, kind[:, None], change[:, None])
        inputs.append(1 + 2 * kind + (~opened).long())
        targets.append(1 + (depths > 0).long() @ torch.tensor([1, 2]))
    return torch.stack(inputs, 1), torch.stack(targets, 1)


def _counter(letters: int) -> Callable[..., Drawn]:
    """a^n b^n (c^n); the answer: 1 the first letter or the second, 2, 3 the next one, or the end.

    After the first of k letters it is 1, then the letter that has to come (2 to k), at the end k+1.
    """

    def draw(lengths: Tensor, generator: Generator) -> Drawn:
        positions, each = _positions(lengths), (lengths // letters)[:, None]
        inputs = 1 + (positions - 1) // each
        return inputs, torch.where(inputs == 1, 1, 1 + positions // each)

    return draw


def _positions(lengths: Tensor) -> Tensor:
    return torch.arange(1, int(lengths.max()) + 1).expand(len(lengths), -1)


def _integers(lengths: Tensor, bound: int, generator: Generator) -> Tensor:
    return torch.randint(bound, (len(lengths), int(lengths.max())), generator=generator)


_DRAWS: dict[str, Callable[[Tensor, Generator], Drawn]] = {
    "parity": _parity,
    "modular": _modular,
    "modular_brackets": _modular_brackets,
    "S3": _group(3),
    "S4": _group(4),
    "A5": _group(5, even=True),
    "S5": _group(5),
    "S5_swaps": _group(5, swaps=True),
    "aa": _aa,
    "abab": _abab,
    "dyck1": _dyck,
    "reset_dyck1": _reset_dyck,
    "shuffle2": _shuffle,
    "counter2": _counter(2),
    "counter3": _counter(3),
}
