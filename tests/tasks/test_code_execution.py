"""Programs and their answers, every one run again by an interpreter written for the test."""

import hashlib
import json
from random import Random

import pytest
import torch

from cli.composition import compose_config
from fwlight.types import IGNORE_INDEX, DataError
from tasks.code_execution import PROGRAMS, CodeExecutionDataModule
from tasks.programs import WORDS, Language, program

RULES = ("first_only", "always")


def run(text: str, rule: str) -> list[str]:
    """Answer every token of a program."""
    values, answers = {}, []
    for statement in text.split(" ;")[:-1]:
        words = [*statement.split(), ";"]
        conditional, holds, rest = words[0] == "if", True, words
        if conditional:
            _, name, sign, bound, _, *rest = words
            holds = values[name] < int(bound) if sign == "<" else values[name] > int(bound)
        answer = "_"
        if rest[0] == "print":
            answer = str(values[rest[1]]) if holds else "_"
        elif holds and rest[1] == "=":
            if not (conditional and rule == "first_only" and rest[0] in values):
                values[rest[0]] = int(rest[2])
        elif holds:
            values[rest[0]] += {"++": 1, "--": -1}[rest[1]]
        answers += ["_"] * (len(words) - 1) + [answer]
    return answers


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("n_variables", "n_statements"), [(1, 2), (3, 10), (5, 40), (10, 25)])
def test_interpreter_agrees_with_every_answer(rule, n_variables, n_statements):
    language, draw = Language(n_variables, n_statements, rule), Random(7)
    names, printed = set(), set()
    for _ in range(200):
        tokens, answers = program(language, draw)
        assert tokens.count(";") == n_statements
        assert answers == run(" ".join(tokens), rule)
        assert answers[-1] != "_"  # the last statement prints
        names |= set(tokens) & set("xyzabcdefg")
        printed |= {int(x) for x in answers if x != "_"}
    assert len(names) == n_variables
    assert -8 <= min(printed) <= max(printed) <= 16


def test_golden_programs(shared_dir):
    golden = json.loads((shared_dir / "reference" / "code_execution_golden.json").read_text())
    differs = 0
    for made in golden["sets"]:
        language, draw = Language(made["num_variables"], made["num_statements"]), Random(42)
        for example in made["examples"]:
            tokens, answers = program(language, draw)
            assert " ".join(tokens) == example["src"].strip()
            assert " ".join(answers) == example["tgt"].strip()
            if not example["undefined_when_used_under_true_semantics"]:
                true = run(example["src"].strip(), "always")
                assert " ".join(true) == example["tgt_true"].strip()
                differs += true != answers
    assert differs > 20


@pytest.mark.slow
@pytest.mark.parametrize("n_variables", [pytest.param(3, marks=pytest.mark.full), 5])
def test_published_files_have_the_authors_hashes(n_variables, shared_dir):
    golden = json.loads((shared_dir / "reference" / "code_execution_golden.json").read_text())
    (hashes,) = (x for key, x in golden.items() if key.startswith("sha256"))
    draw = Random(42)
    for split, n in PROGRAMS.items():
        pairs = [program(Language(n_variables), draw) for _ in range(n)][:-1]
        for side, name in enumerate(("src", "tgt")):
            text = "".join(" ".join(pair[side]) + " \n" for pair in pairs)
            digest = hashlib.sha256(text.encode()).hexdigest()
            assert digest == hashes[f"{split}_{n_variables}.{name}"]


@pytest.mark.slow
def test_published_data_are_those_programs():
    data = CodeExecutionDataModule(data="published", batch_size=4)
    (valid,) = data.evaluation_sets("valid")
    assert len(valid.inputs) == 999
    words = [WORDS[i] for i in valid.inputs[-1][valid.inputs[-1] > 0]]
    targets = valid.targets[-1][: len(words)]
    assert [WORDS[i] for i in targets] == run(" ".join(words), "first_only")
    assert (valid.targets[-1][len(words) :] == IGNORE_INDEX).all()
    order = torch.cat([data.next_of(10, step) for step in range(5)]).view(2, 10)
    assert order.sort(1).values.tolist() == [list(range(10))] * 2
    assert order[0].tolist() != order[1].tolist()


def test_batches_follow_from_seed_and_step_and_tests_may_be_longer():
    options = {"n_statements": 5, "eval_sequences": 7, "test_statements": [5, 9]}
    data, again, other = (CodeExecutionDataModule(seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(data.training_batch(3).inputs, again.training_batch(3).inputs)
    assert not torch.equal(data.training_batch(3).inputs, data.training_batch(4).inputs)
    for split in ("valid", "test"):
        for one, two in zip(data.evaluation_sets(split), other.evaluation_sets(split), strict=True):
            assert torch.equal(one.inputs, two.inputs)
    ends = WORDS.index(";")
    found = [(x.inputs == ends).sum(1).unique().tolist() for x in data.evaluation_sets("test")]
    assert found == [[5], [9]]
    ids = [WORDS.index(word) for word in ("x", "=", "3", ";", "print", "x", ";")]
    assert data.encode("x = 3 ; print x ;") == ids
    assert data.decode(data.encode("x = 3 ;")) == "x = 3 ;"
    with pytest.raises(DataError, match="'q' in the prompt is no word of this task"):
        data.encode("q = 3 ;")
    with pytest.raises(DataError, match="conditional_assign"):
        data.load_state_dict({**data.state_dict(), "conditional_assign": "always"})


def test_the_preset_names_the_ids_of_the_language():
    module = compose_config(["task=code_execution"]).config["module"]
    assert (WORDS[module["blank"]], WORDS[module["end"]]) == ("_", ";")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_variables": 11}, "n_variables=11 must be from 1 to 10"),
        ({"n_statements": 1}, "n_statements=1 must be at least 2"),
        ({"test_statements": [1]}, "n_statements=1 must be at least 2"),
        ({"conditional_assign": "never"}, "never is none of first_only, always"),
        ({"data": "files"}, "files is none of generated, published"),
        ({"data": "published", "n_variables": 4}, "has 3 or 5 variables"),
        ({"data": "published", "n_statements": 10}, "100 statements"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(DataError, match=message):
        CodeExecutionDataModule(**options)
