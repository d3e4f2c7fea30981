"""The words a model knows, in order of frequency."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from fwlight.types import DataError
from tasks.text.tokenizer import EOS, UNK


class Vocabulary:
    """Words and their ids; a word that is not in it has the id of `<unk>`.

    Args:
        words: All words, each once, `<unk>` and `<eos>` among them; the place is the id.

    Raises:
        DataError: a word twice, or `<unk>` or `<eos>` missing.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.ids = {word: index for index, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise DataError("the vocabulary holds a word twice")
        for special in (UNK, EOS):
            if special not in self.ids:
                raise DataError(f"the vocabulary has no {special}")
        self.unk_id, self.eos_id = self.ids[UNK], self.ids[EOS]
        self.hash = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        """SHA-256 of the words in their order."""

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_counts(
        cls, counts: Counter[str], *, min_count: int = 1, max_size: int | None = None
    ) -> "Vocabulary":
        """`<unk>`, `<eos>`, then words by falling count, equal counts in alphabetical order.

        Args:
            counts: Occurrences in the training split.
            min_count: Rarer words are left to `<unk>`.
            max_size: Most entries, `<unk>` and `<eos>` included; None for no limit.
        """
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, n in ranked if n >= min_count and word not in (UNK, EOS)]
        return cls([UNK, EOS, *words][:max_size])

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of the words."""
        get, unk = self.ids.get, self.unk_id
        return [get(word, unk) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of the ids."""
        return [self.words[index] for index in ids]
