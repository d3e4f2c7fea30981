from collections import Counter

import pytest

from fwlight.types import DataError
from tasks.text.vocabulary import Vocabulary


def test_order_is_by_count_then_alphabet():
    counts = Counter({"b": 2, "a": 2, "c": 5, "<eos>": 9, "rare": 1})
    assert Vocabulary.from_counts(counts).words == ["<unk>", "<eos>", "c", "a", "b", "rare"]


def test_limits_leave_rare_words_to_unk():
    counts = Counter({"a": 3, "b": 2, "c": 1})
    assert Vocabulary.from_counts(counts, min_count=2).words == ["<unk>", "<eos>", "a", "b"]
    assert Vocabulary.from_counts(counts, max_size=3).words == ["<unk>", "<eos>", "a"]


def test_unk_of_the_text_is_the_vocabulary_s_own():
    vocabulary = Vocabulary.from_counts(Counter({"<unk>": 7, "a": 1}))
    assert vocabulary.words == ["<unk>", "<eos>", "a"]
    assert vocabulary.encode(["a", "<unk>", "new", "<eos>"]) == [2, 0, 0, 1]
    assert vocabulary.decode([2, 0, 1]) == ["a", "<unk>", "<eos>"]


def test_hash_tells_order_and_words_apart():
    hashes = {
        Vocabulary(["<unk>", "<eos>", *words]).hash for words in (["a", "b"], ["b", "a"], ["ab"])
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("words", [["a"], ["<unk>"], ["<unk>", "<eos>", "a", "a"]])
def test_damaged_vocabulary_is_refused(words):
    with pytest.raises(DataError):
        Vocabulary(words)
