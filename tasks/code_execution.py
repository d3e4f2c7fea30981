"""Code execution: what a program prints, told at every print."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from fwlight.types import IGNORE_INDEX, DataError, LMBatch
from tasks.answers import AnswersDataModule
from tasks.io.cache import cached_folder
from tasks.programs import ANSWERS, WORDS, Language, check_published, program
from tasks.token_rows import python_draws, rows_of_words

PROGRAMS = {"train": 10_000, "valid": 1000, "test": 1000}
"""Programs of the paper's files. The last of each is drawn and not written."""
_SEED = 42
_SHA256 = {
    3: "fb4629619222406d e8a439b6dc48700c 7ce9b39425e1bc84 ea2bf4fa897ae397 6e8f0ba8eb9aca0e "
    "aae52506700d0d17",
    5: "c5fc030f82c05874 1bbc818e778eff3e 83f03142ce135fb9 9fa29f39c6e30d00 7062ac7ca83d3b30 "
    "a5b158847d30bf6e",
}
"""How the hashes of the authors' files begin, by variables: source and target of every split."""

Programs = list[tuple[list[str], list[str]]]


class CodeExecutionDataModule(AnswersDataModule):
    """Programs of `tasks.programs`; the target at a token is what is printed there, or `_`.

    Generated, training draws new programs without end, and the evaluation sets are the same for
    every seed. Published, it goes through the programs of Irie et al. 2021 (arXiv 2106.06295), made
    from the same draws; they are of 100 statements, with 3 or 5 variables.

    Args:
        data: `generated` or `published`.
        n_variables: As of `tasks.programs.Language`.
        n_statements: See there.
        conditional_assign: See there.
        test_statements: Statements of the programs of the test, of each a set; None: as trained.
        batch_size: Programs of a training batch, over all ranks.
        eval_batch_size: Programs of an evaluation batch, over all ranks; changes no result.
        eval_sequences: Programs of every evaluation set that is generated.
        seed: Of the training data, or of its order.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A number is out of range, or the published programs are others.
    """

    words = WORDS

    def __init__(
        self,
        *,
        data: str = "generated",
        n_variables: int = 3,
        n_statements: int = 100,
        conditional_assign: str = "first_only",
        test_statements: Sequence[int] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        eval_sequences: int = 1000,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            eval_sequences=eval_sequences,
            seed=seed,
            num_workers=num_workers,
        )
        self.language = Language(n_variables, n_statements, conditional_assign)
        self.test_statements = tuple(test_statements or (n_statements,))
        self.data = data
        for each in self.test_statements:
            Language(n_statements=each)
        check_published(data, self.language)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data; a test may have longer programs."""
        rules = {"conditional_assign": self.language.conditional_assign}
        return {"data": self.data, "n_variables": self.language.n_variables, **rules}

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with."""
        return {"vocab_size": len(WORDS), "n_outputs": 1 + len(ANSWERS)}

    def training_batch(self, step: int) -> LMBatch:
        """All ranks' programs of a training step."""
        if self.data == "published":
            programs = self._published["train"]
            chosen = self.next_of(len(programs), step).tolist()
            return _batch([programs[i] for i in chosen])
        draw = python_draws("train", self.seed, step)
        return _batch([program(self.language, draw) for _ in range(self.batch_size)])

    def evaluation_sets(self, split: str) -> list[LMBatch]:
        """One set for the validation, one of every length for the test."""
        if self.data == "published":
            return [_batch(self._published[split])]
        lengths = self.test_statements if split == "test" else (self.language.n_statements,)
        return [self._drawn(split, length) for length in lengths]

    # Parts

    def _drawn(self, split: str, n_statements: int) -> LMBatch:
        language = Language(
            self.language.n_variables, n_statements, self.language.conditional_assign
        )
        draw = python_draws(split, repr(language))
        return _batch([program(language, draw) for _ in range(self.eval_sequences)])

    @cached_property
    def _published(self) -> dict[str, Programs]:
        variables = self.language.n_variables
        folder = cached_folder("programs", key=f"{variables}-1", build=self._write)
        return {split: _read(folder, split) for split in PROGRAMS}

    def _write(self, folder: Path) -> None:
        """Make the authors' files, and hold them to their hashes."""
        draw, found = Random(_SEED), []
        for split, n in PROGRAMS.items():
            drawn = [program(self.language, draw) for _ in range(n)][:-1]
            for side, name in enumerate(("src", "tgt")):
                text = "".join(" ".join(pair[side]) + " \n" for pair in drawn)
                (folder / f"{split}.{name}").write_text(text, encoding="ascii")
                found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
        if found != _SHA256[self.language.n_variables].split():
            raise DataError(
                "task.data=published: this Python draws other programs than those of the paper"
            )


def _read(folder: Path, split: str) -> Programs:
    sides = [(folder / f"{split}.{name}").read_text("ascii") for name in ("src", "tgt")]
    lines = [[line.split() for line in side.splitlines()] for side in sides]
    return list(zip(*lines, strict=True))


def _batch(programs: Programs) -> LMBatch:
    inputs, answers = zip(*programs, strict=True)
    return LMBatch(rows_of_words(inputs, WORDS, 0), rows_of_words(answers, WORDS, IGNORE_INDEX))
