"""Several processes of one run: none waits for ever, and the first error is the one that is shown.

The first process starts the others. Each that fails leaves its error in a place of its own making;
the first process ends the rest and tells the earliest. Processes of another launcher (torchrun,
srun) are that launcher's to end.
"""

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from fwlight.errors import StorageError
from fwlight.lightning_internals import SubprocessScriptLauncher, share_threads

_ERRORS, _PARENT = "FWLIGHT_ERRORS", "FWLIGHT_FIRST_PROCESS"
_GRACE = 10.0
"""Seconds for a process to come to its end by itself once another has failed."""
_PR_SET_PDEATHSIG = 1  # sys/prctl.h

_ranks: list[subprocess.Popen[bytes]] = []
_concluding = threading.Event()


def strategy(trainer: Mapping[str, Any], *, timeout: float) -> str | DDPStrategy:
    """Return the strategy of a trainer's configuration, in our form if it is of several processes.

    Args:
        trainer: With `strategy`, `devices` and `num_nodes`.
        timeout: Seconds that a rank waits for the others before it fails.
    """
    name, devices = trainer["strategy"], trainer["devices"]
    several = len(devices) > 1 if isinstance(devices, list) else devices not in (1, "auto")
    if name == "fsdp":
        # Imported where it is used: not every PyTorch has what it is made of.
        from fwlight.run.fully_sharded import FullyShardedStrategy

        return FullyShardedStrategy(timeout=timedelta(seconds=timeout))
    if name == "ddp" or (name == "auto" and (several or trainer["num_nodes"] > 1)):
        return RanksStrategy(timeout=timedelta(seconds=timeout))
    return name


def environment() -> list[ClusterEnvironment]:
    """Return who starts the processes, for a Trainer's plug-ins, where Lightning would be wrong.

    It takes every process in an allocation of SLURM's for one of several that srun has started.
    """
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    alone = "SLURM_NTASKS" in os.environ and started == 1 and "RANK" not in os.environ
    return [LightningEnvironment()] if alone else []


class RanksStrategy(DDPStrategy):
    """Data parallel, its processes watched by `RanksLauncher`."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RanksLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class RanksLauncher(SubprocessScriptLauncher):
    """Starts the other ranks; Lightning's would kill this process if one of them fails."""

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the other ranks if nobody else did, then call the function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            with contextlib.suppress(OSError):
                os.environ[_ERRORS] = tempfile.mkdtemp(prefix="fwlight-")
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            _ranks.extend(self.procs)
            threading.Thread(target=_watch, daemon=True).start()
        elif os.environ.get(_PARENT) not in (None, str(os.getpid())):
            _end_with_parent()
        share_threads(num_processes=self.num_processes)
        return function(*args, **kwargs)


def conclude(code: int, line: str | None) -> tuple[int, str | None]:
    """Return exit code and error line for the end of this process, after that of all others.

    In a rank that the first process started, the line is left to that one.

    Args:
        code: Exit code of this process.
        line: What to tell the user if it is not 0.
    """
    if not _ranks:
        return (code, None) if not code or _left_to_parent(code, line) else (code, line)
    _concluding.set()
    if code == 1:  # perhaps only the echo of another rank's error: let that one be told
        _wait(3.0, until=lambda: _error_left() is not None or _lost() is not None)
    first = code != 0 and _lost() is None and _leave_error(code, line)
    _wait(0.0 if first and _error_left() == (code, line) else _GRACE)
    result = _outcome(code, line)
    end_ranks()
    _ranks.clear()
    shutil.rmtree(os.environ.pop(_ERRORS, ""), ignore_errors=True)
    return result


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    Where it is one of several, the exit handlers run, but Python does not take itself apart: a
    thread of gloo may hold the last reference to a tensor, and frees it by way of Python, which
    aborts the process at that stage (pytorch/pytorch issue 190489).
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # full, or closed
            code = code or StorageError.exit_code
    os._exit(code)


def end_at_once(code: int, line: str) -> str | None:
    """End the ranks that this process started; return the line unless it is left to the first."""
    end_ranks()
    return None if _left_to_parent(code, line) else line


def end_ranks() -> None:
    """End the ranks that this process started; they may hang in a collective, so by force."""
    for process in _ranks:
        process.kill()
    for process in _ranks:
        process.wait()


def _watch() -> None:
    """If a rank fails and this process does not notice, as it waits for something else, end it."""
    while not any(process.poll() for process in _ranks):
        if _concluding.wait(0.2) or all(process.poll() == 0 for process in _ranks):
            return
    if not _concluding.wait(_GRACE):
        code, line = _outcome(1, "error: a rank failed")
        end_ranks()
        print(line, file=sys.stderr, flush=True)
        os._exit(code)


def _outcome(code: int, line: str | None) -> tuple[int, str | None]:
    """Return the earliest error of all processes; this one's is `code` and `line`."""
    lost, left = _lost(), _error_left()
    if lost is not None and (left is None or left[0] == 1):
        rank, signum = lost
        return 1, (
            f"error: the process of rank {rank} was killed by {signal.Signals(signum).name}, which "
            "the system does if memory runs out; resume=auto goes on from the last checkpoint"
        )
    if left is not None:
        return left
    failed = [rank for rank, process in enumerate(_ranks, start=1) if process.returncode]
    if code == 0 and failed:
        return 1, f"error: the process of rank {failed[0]} failed without a word"
    return code, line


def _lost() -> tuple[int, int] | None:
    """Return rank and signal of a process that was killed."""
    codes = [process.poll() for process in _ranks]
    return next(((n, -c) for n, c in enumerate(codes, start=1) if c is not None and c < 0), None)


def _left_to_parent(code: int, line: str | None) -> bool:
    """Leave an error to the first process, if that started this one and takes it."""
    return os.environ.get(_PARENT) == str(os.getppid()) and _leave_error(code, line)


def _leave_error(code: int, line: str | None) -> bool:
    """Put down an error unless there is one; return whether there is a place for it."""
    folder = os.environ.get(_ERRORS)
    if folder is None:
        return False
    own = Path(folder, str(os.getpid()))
    try:
        own.write_text(json.dumps([code, line]), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(own, Path(folder, "first"))
    except OSError:
        return False
    return True


def _error_left() -> tuple[int, str] | None:
    with contextlib.suppress(OSError, ValueError):
        code, line = json.loads(Path(os.environ[_ERRORS], "first").read_text(encoding="utf-8"))
        return code, line
    return None


def _wait(seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
    """Wait for the ranks' ends, or for something else."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        if all(process.poll() is not None for process in _ranks):
            return
        time.sleep(0.05)


def _end_with_parent() -> None:
    """Let the kernel end this process if the first one is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ[_PARENT] != str(os.getppid()):
            os._exit(1)
