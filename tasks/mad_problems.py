"""The problems of MAD and their baselines; checked before torch is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fwlight.types import DataError


@dataclass(frozen=True)
class MADSettings:
    """What a problem's sequences are drawn with.

    Args:
        vocab_size: Number of token ids, those of noise and special ones among them.
        seq_len: Tokens of a sequence.
        n_train: Sequences of the training set, which is gone through again and again.
        noise_vocab_size: How many of the ids are noise.
        noise: Share of noise among the pairs of noisy recall.
        n_copy: Tokens to copy.
        motif: Most tokens of a key, and of a value, of fuzzy recall.
    """

    vocab_size: int
    seq_len: int
    n_train: int = 12_800
    noise_vocab_size: int = 0
    noise: float = 0.0
    n_copy: int = 0
    motif: int = 1


BASELINES: Mapping[str, MADSettings] = {
    "recall": MADSettings(16, 128),
    "fuzzy": MADSettings(16, 128, motif=3),
    "noisy": MADSettings(32, 128, noise_vocab_size=16, noise=0.2),
    "selective_copy": MADSettings(16, 256, n_copy=16),
    "compression": MADSettings(16, 32),
    "memorisation": MADSettings(256, 32, n_train=256),
}
"""The settings that the benchmark begins with (Poli et al. 2024, arXiv 2403.17844)."""

USED = {
    "fuzzy": ("motif",),
    "noisy": ("noise", "noise_vocab_size"),
    "selective_copy": ("n_copy",),
}
"""Settings that a problem has beside those of all."""


def check_task(task: Mapping[str, Any]) -> None:
    """Check a task's configuration; see `settings_of`."""
    settings_of(task["problem"], {name: task[name] for name in asdict(BASELINES["recall"])})


def settings_of(problem: str, given: Mapping[str, Any]) -> MADSettings:
    """Return a problem's baseline with what is given, and not None, in its place.

    Raises:
        DataError: There is no such problem, it has no such setting, or a size is too small for what
            it has to hold.
    """
    if problem not in BASELINES:
        raise DataError(f"task.problem={problem} is none of {', '.join(BASELINES)}")
    given = {name: value for name, value in given.items() if value is not None}
    used = ("vocab_size", "seq_len", "n_train", *USED.get(problem, ()))
    if others := [name for name in given if name not in used]:
        raise DataError(f"task.{others[0]}: task.problem={problem} has {', '.join(used)}")
    found = replace(BASELINES[problem], **given)
    for name, low in _least(problem, found).items():
        if (value := getattr(found, name)) < low:
            raise DataError(
                f"task.{name}={value} is too small for task.problem={problem}; it must be at least "
                f"{low}"
            )
    if problem in ("recall", "noisy", "memorisation") and found.seq_len % 2:
        raise DataError(f"task.seq_len={found.seq_len} must be even: pairs of two tokens")
    if problem == "noisy" and found.noise >= 1:
        raise DataError(f"task.noise={found.noise} must be below 1: a pair has to be left")
    return found


def _least(problem: str, settings: MADSettings) -> dict[str, int]:
    """The smallest sizes with which every sequence has a question and an answer."""
    sizes = {"n_train": 1}
    if problem == "fuzzy":  # a token is in a key once; the pair that is asked comes twice
        motif = settings.motif
        return {**sizes, "motif": 1, "vocab_size": 2 * motif + 1, "seq_len": 4 * motif + 1}
    if problem == "noisy":
        noise = settings.noise_vocab_size
        return {**sizes, "noise_vocab_size": 1, "vocab_size": noise + 2, "seq_len": 4}
    if problem == "selective_copy":
        return {**sizes, "n_copy": 1, "vocab_size": 3, "seq_len": 2 * settings.n_copy + 1}
    least = {"recall": (2, 4), "compression": (2, 2), "memorisation": (3, 2)}[problem]
    return {**sizes, "vocab_size": least[0], "seq_len": least[1]}
