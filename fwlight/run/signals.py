"""Signals: a run that is asked to stop saves at the end of the step, on all ranks, and goes."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from fwlight.lightning_internals import completes_update, evaluates_now
from fwlight.run.checkpointing import RunCheckpoint

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Those of them that the system has: Windows lacks the last."""
_TOGETHER = 0.5
"""Seconds within which a terminal and a launcher may both pass on what was asked once."""
_TOGETHER_IN_A_JOB = 30.0
"""SLURM asks by itself and by way of srun, and kills after about so long what does not end."""

_asked: signal.Signals | None = None
_deferring = False


class Stopped(BaseException):
    """A signal ended the run.

    Args:
        signum: Which.
        saved_step: The step that is saved, None if nothing was for the signal's sake.
    """

    def __init__(self, signum: int, *, saved_step: int | None = None) -> None:
        self.signum = signal.Signals(signum)
        self.saved_step = saved_step
        place = "from the last checkpoint" if saved_step is None else "from there"
        after = "" if saved_step is None else f" after step {saved_step}, which is saved"
        super().__init__(f"stopped by {self.signum.name}{after}; resume=auto goes on {place}")

    @property
    def exit_code(self) -> int:
        """As a shell counts: 143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1."""
        return 128 + self.signum


@contextlib.contextmanager
def listening(*, before_exit: Callable[[int, str], str | None]) -> Iterator[None]:
    """Take signals in the block: the first raises `Stopped`, in training at the end of the step.

    A second one ends the process at once, whatever it is doing or waiting for; under SLURM, which
    asks more than once, not within half a minute.

    Args:
        before_exit: Called by that second signal with exit code and error line; returns the line if
            this process is the one to tell it.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = None
    # Python runs a handler between two instructions only, and one may wait for another rank; the
    # number of a signal is written into this pair at once, and a thread reads it.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, _handle) for number in SIGNALS}
    threading.Thread(target=_watch, args=(reader, before_exit), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)
        writer.close()


class StopOnSignal(Callback):
    """Ends training on all ranks at the end of the step in which any of them got a signal.

    Where an evaluation is due the end comes after it, as with every checkpoint.

    Args:
        checkpoint: Saves.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._group: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal waits."""
        if trainer.world_size > 1:
            # Of its own and on CPUs: asking must not wait for a GPU.
            self._group = torch.distributed.new_group(backend="gloo")
        _defer(True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop if asked to, unless an evaluation comes first."""
        if completes_update(trainer) and not evaluates_now(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if asked to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if asked to; from now on a signal does not wait."""
        self._stop_if_asked(trainer)
        _defer(False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing is saved any more, so nothing waits."""
        _defer(False)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = torch.tensor(_asked or 0)
        if self._group is not None:
            torch.distributed.all_reduce(
                asked, op=torch.distributed.ReduceOp.MAX, group=self._group
            )
        if asked:
            self._checkpoint.save_unless_saved(trainer)
            raise Stopped(int(asked), saved_step=trainer.global_step)


def _defer(deferring: bool) -> None:
    global _deferring
    _deferring = deferring


def _handle(signum: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        return  # the watching thread counts
    _asked = signal.Signals(signum)
    if not _deferring:
        raise Stopped(signum)
    if (
        getattr(rank_zero_only, "rank", 0) == 0
    ):  # a terminal and a batch system signal to all processes
        # Not print: the signal may have come in the middle of another one.
        _say(f"warning: {_asked.name}: stopping after this step; a second signal ends at once\n")


def _watch(reader: socket.socket, before_exit: Callable[[int, str], str | None]) -> None:
    first: float | None = None
    together = _TOGETHER_IN_A_JOB if "SLURM_STEP_ID" in os.environ else _TOGETHER
    while numbers := reader.recv(64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > together:
                name = signal.Signals(number).name
                line = f"error: ended at once by a second signal, {name}; resume=auto goes on"
                if (told := before_exit(128 + number, line)) is not None:
                    _say(f"{told}\n")
                os._exit(128 + number)
    reader.close()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode())
