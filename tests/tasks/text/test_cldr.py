import re

import pytest

from fwlight.types import DataError
from tasks.text import cldr
from tasks.text.cldr import phrase_pairs


@pytest.fixture(scope="module")
def pairs():
    return phrase_pairs("en", "de", seed=1)


def test_splits_share_no_sentence(pairs) -> None:
    sources = {split: {source for source, _ in rows} for split, rows in pairs.items()}
    assert {split: len(rows) for split, rows in pairs.items()} == cldr.SIZES
    assert all(len(sources[split]) == len(pairs[split]) for split in pairs)
    assert not sources["train"] & (sources["valid"] | sources["test"])
    assert not sources["valid"] & sources["test"]


def test_every_word_of_evaluation_occurs_in_training(pairs) -> None:
    def words(rows, side: int) -> set[str]:
        text = " ".join(row[side] for row in rows)
        return set(re.findall(r"[^\W\d]+", text))

    for side in (0, 1):
        known = words(pairs["train"], side)
        assert words(pairs["valid"] + pairs["test"], side) <= known


def test_phrases_are_those_of_the_locales(pairs) -> None:
    rows = dict(pairs["train"])
    assert rows["Japan"] == "Japan"
    assert rows["Germany"] == "Deutschland"
    assert rows["1 kilometer"] == "1 Kilometer"
    assert rows["Tuesday, February 29, 2000"] == "Dienstag, 29. Februar 2000"
    assert all(text == " ".join(text.split()) for row in pairs["test"] for text in row)


def test_seed_decides_and_an_unknown_language_is_named(pairs, monkeypatch) -> None:
    monkeypatch.setattr(cldr, "SIZES", {"train": 2_500, "valid": 10, "test": 10})
    other = phrase_pairs("en", "fr", seed=2)
    assert [source for source, _ in other["test"]] != [source for source, _ in pairs["test"][:10]]
    with pytest.raises(DataError, match="knows no language xx"):
        phrase_pairs("en", "xx", seed=1)
