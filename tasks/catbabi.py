"""catbAbI: bAbI's stories one behind the other, as one stream of text with questions."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning

from fwlight.types import DataError
from tasks.babi import MODES, TASKS, Splits, check_source, open_stories
from tasks.position import SCORES, refuse_other_data
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least
from tasks.story_rows import (
    EOS,
    PAD,
    QUESTION,
    Encoded,
    EvalStories,
    StoryRows,
    TrainStories,
    encode,
)


class CatbabiDataModule(lightning.LightningDataModule):
    """Stories of `tasks.babi` in rows that are read on and on (Schlag et al. 2021a, 2011.07831).

    Words get ids in the order of their first appearance, after `<pad>` and `<eos>`. A checkpoint
    keeps them and a hash of the stories: it goes on with the same stories alone, and is tested on
    any in its words.

    Args:
        data: `made_up`, or `babi`, its raw files.
        path: Of `babi`: see `tasks.babi.find_files`.
        tasks: Numbers of bAbI's tasks; None: all of the source.
        mode: `qm`: the answer is the only target, at the question mark; `lm`: every next token is.
        n_stories: Of `made_up`: see `tasks.made_up_stories.made_up_splits`.
        drop_last_story: Of `babi`: see `tasks.babi.babi_splits`.
        valid_seed: See there.
        task_numbers: Whether the vocabulary has 20 words more, as many as bAbI has tasks, which are
            never used: in the published code the numbers of the tasks got there by mistake.
        batch_size: Rows of the training stream, over all ranks.
        eval_batch_size: Rows of the validation stream, over all ranks.
        test_batch_size: Rows of the test stream, over all ranks.
        seq_len: Tokens that are read at a time, and through which gradients go back.
        seed: Of the order of the training stories, and of those that are made up.
        num_workers: Processes that make training batches ahead; changes no result.

    Raises:
        DataError: A number is too small, or an option unknown.
    """

    def __init__(
        self,
        *,
        data: str = "made_up",
        path: str | Path | None = None,
        tasks: Sequence[int] | None = None,
        mode: str = "qm",
        n_stories: int = 1000,
        drop_last_story: bool = True,
        valid_seed: int = 0,
        task_numbers: bool = True,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        test_batch_size: int = 1,
        seq_len: int = 200,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_least(1, n_stories=n_stories, seq_len=seq_len, batch_size=batch_size)
        check_least(1, eval_batch_size=eval_batch_size, test_batch_size=test_batch_size)
        if mode not in MODES:
            raise DataError(f"task.mode={mode} is none of {', '.join(MODES)}")
        self.tasks = check_source(data, path=path, tasks=tasks)
        self.data, self.mode, self.batch_size, self.seed = data, mode, batch_size, seed
        self.eval_batch_size, self.test_batch_size = eval_batch_size, test_batch_size
        self.seq_len, self.num_workers, self._task_numbers = seq_len, num_workers, task_numbers
        self._open = partial(
            open_stories,
            data,
            path=path,
            tasks=self.tasks,
            n_stories=n_stories,
            drop_last_story=drop_last_story,
            valid_seed=valid_seed,
            seed=seed,
        )
        self.words: tuple[str, ...] = ()
        """In the order of their ids; known once `setup` or `load_state_dict` has run."""
        self.stories: dict[str, Encoded] = {}
        """By split; filled by `setup`."""
        self._fingerprint = self._stored = ""

    # Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Read or make the stories, once.

        Raises:
            DataError: They cannot be used, or are not those of the loaded checkpoint.
        """
        if self.stories:
            return
        splits = self._open()
        words = _vocabulary(splits, task_numbers=self._task_numbers)
        self._fingerprint = hashlib.sha256(repr((words, splits)).encode()).hexdigest()
        if self.words and stage in SCORES:
            known = set(self.words)
            unknown = next((word for word in words if word not in known), None)
            if unknown is not None:
                raise DataError(f"the stories have a word that the checkpoint has not: {unknown}")
        else:
            self._compare()
            self.words = words
        ids = {word: i for i, word in enumerate(self.words)}
        self.stories = {split: encode(stories, ids) for split, stories in splits.items()}

    def train_dataloader(self) -> TrainStories:
        """This rank's rows of the training stream."""
        return TrainStories(
            self.stories["train"],
            self._rows_of("train"),
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            seed=self.seed,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalStories:
        """This rank's rows of the validation stream."""
        return self._evaluation("valid", self.eval_batch_size)

    def test_dataloader(self) -> EvalStories:
        """This rank's rows of the test stream."""
        return self._evaluation("test", self.test_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"mode": self.mode, "words": list(self.words), "fingerprint": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data; before `setup`, take over its words.

        Raises:
            DataError: The stories are others.
        """
        refuse_other_data(state_dict, {"mode": self.mode})
        self._stored = str(state_dict["fingerprint"])
        if self.stories:
            self._compare()
        else:
            self.words = tuple(map(str, state_dict["words"]))

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, int]:
        """What a network is built with, once `setup` or `load_state_dict` has run."""
        return {"vocab_size": len(self.words), "n_outputs": len(self.words)}

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, whose words have spaces between them; `<eos>` begins a story.

        Raises:
            DataError: A word is unknown.
        """
        ids = {word: i for i, word in enumerate(self.words)}
        for word in text.split():
            if word not in ids:
                raise DataError(f"{word!r} in the prompt is no word of this task")
        return [ids[word] for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids as words with spaces between."""
        return " ".join(self.words[i] for i in ids)

    # Parts

    def _compare(self) -> None:
        if self._stored and self._stored != self._fingerprint:
            raise DataError(
                f"the checkpoint's stories are others: {self._stored[:12]} in the checkpoint, "
                f"{self._fingerprint[:12]} now; use the files and options of the old run, or start "
                "anew in another run_dir"
            )

    def _rows_of(self, split: str) -> Any:
        return partial(
            StoryRows,
            self.stories[split],
            seq_len=self.seq_len,
            question=self.words.index(QUESTION),
            answers_only=self.mode == "qm",
        )

    def _evaluation(self, split: str, n_rows: int) -> EvalStories:
        rows = self._rows_of(split)
        return EvalStories(self.stories[split], rows, n_rows=n_rows, **ranks(self.trainer))


def _vocabulary(splits: Splits, *, task_numbers: bool) -> tuple[str, ...]:
    said = (story.words for stories in splits.values() for story in stories)
    unused = [f"<task {number}>" for number in TASKS if task_numbers]
    return tuple(dict.fromkeys([PAD, EOS, *chain.from_iterable(said), *unused]))
