"""Expressions and their values, every one computed again by an evaluator written for the test."""

import json
from random import Random

import pytest
import torch

from fwlight.types import IGNORE_INDEX, DataError
from tasks.expressions import OPERATORS, WORDS, Grammar, expression
from tasks.listops import EXPRESSIONS, ListOpsDataModule


def evaluate(tokens: list[str]) -> tuple[int, int]:
    """Return the value and the deepest nesting, with a stack."""
    stack, deepest = [], 0
    for token in tokens:
        if token == "]":
            name, *values = stack.pop()
            ordered = sorted(values)
            result = {
                "[MIN": ordered[0],
                "[MAX": ordered[-1],
                "[FIRST": values[0],
                "[LAST": values[-1],
                "[MED": ordered[len(ordered) // 2],
                "[SUM_MOD": sum(values) % 10,
            }[name]
            if not stack:
                return result, deepest
            stack[-1].append(result)
        elif token.startswith("["):
            stack.append([token])
            deepest = max(deepest, len(stack))
        else:
            stack[-1].append(int(token))
    raise AssertionError("the brackets are not closed")


@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("operators", [("MIN", "MAX", "FIRST"), tuple(OPERATORS)])
def test_evaluator_agrees_with_every_value_and_depth(depth, operators):
    grammar, draw = Grammar(depth, operators), Random(3)
    seen = set()
    for _ in range(40):
        tokens, value = expression(grammar, draw)
        assert evaluate(tokens) == (value, depth)
        seen |= {token[1:] for token in tokens if token.startswith("[")}
    assert seen == set(operators)


def test_golden_expressions(shared_dir):
    golden = json.loads((shared_dir / "reference" / "listops_golden.json").read_text())
    for made in golden["sets"]:
        draw = Random(42)
        for example in made["examples"]:
            tokens, value = expression(Grammar(made["nesting"]), draw)
            assert (" ".join(tokens), value) == (example["tokens"], example["value"])


def test_the_value_is_asked_at_the_last_bracket():
    data = ListOpsDataModule(depth=2, batch_size=5, eval_sequences=9)
    batch = data.training_batch(0)
    assert torch.equal(batch.inputs, ListOpsDataModule(depth=2, batch_size=5).training_batch(0)[0])
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        tokens = [WORDS[i] for i in inputs[inputs > 0]]
        (place,) = (targets != IGNORE_INDEX).nonzero().flatten().tolist()
        assert place == len(tokens) - 1
        assert WORDS[targets[place]] == str(evaluate(tokens)[0])
        assert targets[place] < data.network_sizes["n_outputs"]
    assert data.decode(data.encode("[MAX 3 [MIN 8 4 ] ]")) == "[MAX 3 [MIN 8 4 ] ]"
    with pytest.raises(DataError, match="no word of this task"):
        data.encode("[SUM 1 2 ]")


@pytest.mark.slow
def test_published_expressions_are_kept_in_the_cache(monkeypatch):
    monkeypatch.setattr("tasks.listops.EXPRESSIONS", {"train": 6, "valid": 3, "test": 2})
    data = ListOpsDataModule(data="published", batch_size=4)
    data.grammar = Grammar(4)  # which is drawn in less time
    assert len(data.training_batch(0).inputs) == 4
    draw = Random(42)
    drawn = [expression(Grammar(4), draw) for _ in range(11)]
    (test,) = data.evaluation_sets("test")
    assert [WORDS[i] for i in test.inputs[0][test.inputs[0] > 0]] == drawn[9][0]
    assert EXPRESSIONS["train"] == 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth=0 must be from 1 to 19"),
        ({"operators": ["MIN", "ADD"]}, "ADD is none of MIN, MAX"),
        ({"operators": []}, "must name at least one"),
        ({"data": "published", "depth": 5}, "has task.depth=10 or 15"),
        ({"data": "x"}, "x is none of generated, published"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(DataError, match=message):
        ListOpsDataModule(**options)
