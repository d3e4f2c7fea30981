"""Where a training is in its data: batches by number, stored and gone on from exactly."""

import atexit
import ctypes
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from fwlight.types import DataError

Batch = TypeVar("Batch")

SCORES = ("test", "diagnose")
"""Stages that run a checkpoint on a text, of which only the vocabulary must be its own."""


def refuse_other_data(
    stored: Mapping[str, Any], now: Mapping[str, Any], *, section: str = "task"
) -> None:
    """Compare what a checkpoint was trained on with the data at hand.

    Raises:
        DataError: A value differs.
    """
    for name, value in now.items():
        if stored[name] != value:
            key = f"{section}.{name}"
            raise DataError(
                f"the checkpoint was trained with {key}={stored[name]}, now it is "
                f"{key}={value}; give the old value, or start anew in another run_dir"
            )


def refuse_other_text(then: tuple[str, str], now: tuple[str, str], *, remedy: str) -> None:
    """Compare the hashes of a checkpoint's vocabulary and text with those at hand.

    Raises:
        DataError: One differs; the remedy says what else to give.
    """
    for what, *hashes in zip(("vocabulary", "text"), then, now, strict=True):
        if hashes[0] != hashes[1]:
            raise DataError(
                f"the checkpoint's {what} is another: {hashes[0][:12]} in the checkpoint, "
                f"{hashes[1][:12]} now; {remedy}, or start anew in another run_dir"
            )


def whose(stored: str | None, now: str) -> str:
    """Say whether a text that is scored is the checkpoint's, by the hashes of both."""
    if stored is None:
        return "the checkpoint, of an earlier version, does not say whether it is its own"
    return "the checkpoint's own" if stored == now else "not the checkpoint's own"


class TrainBatches(Generic[Batch]):
    """Training batches, each made from its number alone.

    The position, the number of the next batch, is the same for all ranks and any number of them. It
    moves when a batch is taken, however training is cut into iterations, epochs and resumes, and
    however far ahead processes make batches. Lightning stores and restores it by `state_dict` and
    `load_state_dict`.

    Args:
        draw: Makes this rank's batch of a number, the same one whenever it is asked.
        n_batches: Batches of an iteration.
        period: Begin again at 0 after so many; None: never.
        meaning: What a number means: values of `task` that must not change over a resume.
        num_workers: Processes that make batches ahead, which must be forked; 0: this one does.
        after: The number after a number; None: one more, or 0 where the period is over.
    """

    def __init__(
        self,
        draw: Callable[[int], Batch],
        *,
        n_batches: int,
        period: int | None,
        meaning: Mapping[str, int],
        num_workers: int = 0,
        after: Callable[[int], int] | None = None,
    ) -> None:
        self._after = after or (lambda number: self._wrapped(number + 1))
        self._draw, self._n_batches, self._period = draw, n_batches, period
        self._meaning, self._num_workers = dict(meaning), num_workers
        self._position = 0

    def __len__(self) -> int:
        # Without a length Lightning would fetch one batch ahead, and store a position too far on.
        return self._n_batches

    def __iter__(self) -> Iterator[Batch]:
        numbers: list[int] = []
        for _ in range(self._n_batches):
            numbers.append(self._after(numbers[-1]) if numbers else self._position)
        # Lightning may make an iterator and not read it, or, going on after a whole epoch, break
        # the next one off: only batches that were taken move the position.
        for number, batch in zip(numbers, self._made(numbers), strict=True):
            self._position = self._after(number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The next batch, and what a batch means."""
        return {"position": self._position, **self._meaning}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the stored batch.

        Raises:
            DataError: It was counted in other batches.
        """
        refuse_other_data(state, self._meaning)
        self._position = self._wrapped(state["position"])

    def _wrapped(self, number: int) -> int:
        return number if self._period is None else number % self._period

    def _made(self, numbers: list[int]) -> Iterator[Batch]:
        if not self._num_workers:
            return map(self._draw, numbers)
        if "fork" not in multiprocessing.get_all_start_methods():
            raise DataError(
                f"task.num_workers={self._num_workers} needs processes that are forked, which this "
                "system has not; give task.num_workers=0"
            )
        loader: DataLoader[Batch] = DataLoader(
            _Numbered(self._draw),  # pyright: ignore[reportArgumentType]
            sampler=numbers,
            batch_size=None,
            num_workers=self._num_workers,
            multiprocessing_context="fork",
            worker_init_fn=partial(_stay_until_told, os.getpid()),
            # Or it would take a number from the global generator at every iteration.
            generator=torch.Generator(),
        )
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        _workers.update(set(multiprocessing.active_children()) - others)
        return batches


class _Numbered(Generic[Batch]):
    def __init__(self, draw: Callable[[int], Batch]) -> None:
        self._draw = draw

    def __getitem__(self, number: int) -> Batch:
        return self._draw(number)


def _stay_until_told(parent: int, _: int) -> None:
    """Leave signals to the process that trains, which ends its workers once it has saved.

    They end with it however it ends; where it is not Linux, within seconds, by torch's watch.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # who can fork has them all
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was asked
        os._exit(1)


_SET_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def _end_workers() -> None:
    """End them before multiprocessing, which asks with SIGTERM and waits without end."""
    left = [worker for worker in _workers if worker.is_alive()]
    if left:  # torch's own handler takes a killed worker for an accident
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in left:
        worker.kill()


# What is registered last runs first; multiprocessing did when its `util` was imported.
atexit.register(_end_workers)
