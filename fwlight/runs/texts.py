"""Which text, or which problem, runs are of."""

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from fwlight.runs.reading import Run

KEYS = (
    "data",
    "path",
    "train",
    "valid",
    "test",
    "problem",
    "setting",
    "source_lang",
    "target_lang",
)
"""Keys of `task` that say which text, or which problem, a run is of."""
_PATHS = KEYS[1:5]


def texts_of(runs: Sequence[Run]) -> list[str]:
    """Return, for each run, what it was trained on; equal words stand for the same text.

    Of one fingerprint is the same text, wherever it lies; a run that has none, as one of an earlier
    version, is taken to be of the text that its settings name.
    """
    named = [
        tuple(as_typed(setting(run, key)) for key in ("task", *(f"task.{x}" for x in KEYS)))
        for run in runs
    ]
    prints: dict[Any, dict[str, None]] = {}
    for name, run in zip(named, runs, strict=True):
        prints.setdefault(name, {}).update(dict.fromkeys(filter(None, [run.fingerprint])))
    same = [
        run.fingerprint or (next(iter(prints[name])) if len(prints[name]) == 1 else name)
        for name, run in zip(named, runs, strict=True)
    ]
    words: dict[Any, str] = {}
    for what, name in zip(same, named, strict=True):
        words.setdefault(what, _in_words(name))
    found = []
    for what in same:
        word = words[what]
        if word and sum(other == word for other in words.values()) > 1:
            word += f" {what[:8]}" if isinstance(what, str) else " ?"
        found.append(word)
    return found


def _in_words(name: Sequence[str]) -> str:
    words = [
        PurePath(word).name if key in _PATHS else word
        for key, word in zip(("task", *KEYS), name, strict=True)
        if word not in ("", "null")
    ]
    return " ".join(words)


def setting(run: Run, key: str) -> Any:
    """Return the value of a key, None where a run has no such key."""
    return "null" if (value := run.settings.get(key)) is None and key in run.settings else value


def as_typed(value: Any) -> str:
    """Return a setting as on the command line, nothing for None."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, default=str)
