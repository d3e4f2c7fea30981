"""Stories of bAbI (Weston et al. 2015, arXiv 1502.05698), read from its raw files.

A line is `ID statement.` or `ID question? TAB answer TAB supporting IDs`; ID 1 begins a story. No
text of bAbI is part of fwlight.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fwlight.types import DataError
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch
from tasks.io.textfiles import existing_file, read_pieces
from tasks.made_up_stories import KINDS, made_up_splits

DATA = ("made_up", "babi")
MODES = ("qm", "lm")
TASKS = tuple(range(1, 21))
FOLDERS = ("en-valid-10k", "en-10k")
"""Of the archive, in the order of preference: the first has validation files of its own."""
_ARCHIVE = "tasks_1-20_v1-2.tar.gz"
_ADDRESSES = (
    f"http://www.thespermwhale.com/jaseweston/babi/{_ARCHIVE}",
    f"https://s3.amazonaws.com/text-datasets/babi_{_ARCHIVE}",
)
_LOOKED_AT = 100
"""Lines of every file that are read before torch is imported."""


class Story(NamedTuple):
    """Statements and questions in their order, in lower case."""

    task: int
    words: tuple[str, ...]
    """A statement ends in `.`, a question in `?` and its answer, which is one word."""


Splits = dict[str, list[Story]]


def read_stories(file: Path, task: int, *, most_lines: int | None = None) -> list[Story]:
    """Return the stories of a raw file, packed by gzip or not.

    Raises:
        DataError: It cannot be read, or is not of this kind.
    """
    stories: list[Story] = []
    words: list[str] = []
    expected = 1
    for number, piece in enumerate(islice(read_pieces(file), most_lines), 1):
        identity, _, text = piece.text.partition(" ")
        if identity == "1" and words:
            stories.append(Story(task, tuple(words)))
            words, expected = [], 1
        said = _said(text) if identity == str(expected) else None
        if said is None:
            raise DataError(
                f"{file}:{number}: no line of bAbI, which is the next number and a statement with "
                "its full stop, or a question, its answer and numbers between tabs"
            )
        words += said
        expected += 1
    if not words:
        raise DataError(f"{file} holds no story")
    return [*stories, Story(task, tuple(words))]


def _said(text: str) -> list[str] | None:
    """Return the words of a line without its number; None if it is cut or something else."""
    question, *rest = text.lower().rstrip().split("\t")
    question = question.rstrip()
    if not rest and question.endswith("."):
        return [*question[:-1].split(), "."]
    if len(rest) == 2 and question.endswith("?") and len(rest[0].split()) == 1:
        return [*question[:-1].split(), "?", rest[0].strip()]
    return None


def find_files(path: str | Path | None, tasks: Sequence[int]) -> dict[str, dict[int, Path]]:
    """Return the raw files by split and task; those of the validation split may be missing.

    Args:
        path: A folder that holds them, or whose folder of one of the names `FOLDERS` does, or the
            archive; None downloads it.
        tasks: Numbers of those that are wanted.

    Raises:
        DataError: Files are missing.
        StorageError: There is no network.
    """
    root = Path(path).expanduser() if path is not None else _downloaded()
    root = root if root.is_dir() else extract(existing_file(root))
    inside = (found for name in FOLDERS for found in sorted(root.rglob(name)))
    folder = next((x for x in (root, *inside) if next(x.glob("qa*_train*"), None)), root)
    files: dict[str, dict[int, Path]] = {}
    for split in ("train", "valid", "test"):
        files[split] = dict(_of_split(folder, split, tasks))
        missing = [task for task in tasks if task not in files[split]]
        if missing and (split != "valid" or files[split]):
            raise DataError(
                f"{folder} holds no file qa{missing[0]}_..._{split}.txt of bAbI's task "
                f"{missing[0]}; task.tasks=[...] chooses those that are there, task.path is a "
                f"folder of raw files or {_ARCHIVE}"
            )
    return files


def _of_split(folder: Path, split: str, tasks: Sequence[int]) -> Iterator[tuple[int, Path]]:
    pattern = re.compile(rf"qa(\d+)_[^_]+_{split}(\.[^.]+)?\.txt(\.gz)?")
    # Whole files before parts of them, which have a longer name.
    for file in sorted(folder.iterdir(), key=lambda file: -len(file.name)):
        found = pattern.fullmatch(file.name)
        if found and int(found[1]) in tasks:
            yield int(found[1]), file


def _downloaded() -> Path:
    manual = f"get {_ARCHIVE} on another machine and give task.path=FILE, or task.data=made_up"
    return fetch(Download(_ARCHIVE, _ADDRESSES), folder=data_folder("babi"), manual=manual)


def babi_splits(
    path: str | Path | None, tasks: Sequence[int], *, drop_last_story: bool, valid_seed: int
) -> Splits:
    """Return the stories of every split, as catbAbI takes them (Schlag et al. 2021a).

    Args:
        path: See `find_files`.
        tasks: See there.
        drop_last_story: Whether the last story of every file is lost, as in the published code.
        valid_seed: Of the tenth of each task's training stories that is the validation split where
            that has no files.
    """
    read = {
        split: {task: read_stories(file, task) for task, file in sorted(files.items())}
        for split, files in find_files(path, tasks).items()
    }
    if not read["valid"]:
        for task, stories in read["train"].items():
            chosen = Random(f"{valid_seed} {task}").sample(range(len(stories)), len(stories) // 10)
            read["valid"][task] = [stories[i] for i in sorted(chosen)]
            read["train"][task] = [x for i, x in enumerate(stories) if i not in set(chosen)]
    kept = slice(None, -1 if drop_last_story else None)
    return {
        split: [story for stories in of_task.values() for story in stories[kept]]
        for split, of_task in read.items()
    }


def open_stories(
    data: str,
    *,
    path: str | Path | None,
    tasks: Sequence[int] | None,
    n_stories: int,
    drop_last_story: bool,
    valid_seed: int,
    seed: int,
) -> Splits:
    """Return the splits of a source, shuffled once: those of validation and test the same always.

    Raises:
        DataError: The source or a task is unknown, or as `babi_splits`.
        StorageError: A download fails.
    """
    wanted = check_source(data, path=path, tasks=tasks)
    if data == "babi":
        options = {"drop_last_story": drop_last_story, "valid_seed": valid_seed}
        splits = babi_splits(path, wanted, **options)
    else:
        made = made_up_splits(wanted, n_stories=n_stories, seed=seed)
        splits = {split: [Story(*story) for story in stories] for split, stories in made.items()}
    for split, stories in splits.items():
        if not stories:
            raise DataError(f"task.data={data} gives no story for the {split} split")
        Random(f"order {split}").shuffle(stories)
    return splits


def check_source(
    data: str, *, path: str | Path | None, tasks: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the tasks that are wanted, by default all of the source.

    Raises:
        DataError: The source or a task is unknown, or a path given that is not read.
    """
    if data not in DATA:
        raise DataError(f"task.data={data} is none of {', '.join(DATA)}")
    if data == "made_up" and path is not None:
        raise DataError("task.data=made_up reads no files; give task.data=babi too")
    known = TASKS if data == "babi" else tuple(KINDS)
    wanted = known if tasks is None else tuple(tasks)
    if unknown := sorted(set(wanted) - set(known)):
        raise DataError(f"task.tasks: {data} has no {unknown[0]}, but {', '.join(map(str, known))}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise DataError("task.tasks must name at least one, and none twice")
    return wanted


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration, and the beginning of every file of a folder."""
    if task["mode"] not in MODES:
        raise DataError(f"task.mode={task['mode']} is none of {', '.join(MODES)}")
    wanted = check_source(task["data"], path=task["path"], tasks=task["tasks"])
    if task["data"] == "made_up" or task["path"] is None:
        return
    if not Path(task["path"]).expanduser().is_dir():
        existing_file(task["path"])
        return
    for files in find_files(task["path"], wanted).values():
        for number, file in files.items():
            read_stories(file, number, most_lines=_LOOKED_AT)
