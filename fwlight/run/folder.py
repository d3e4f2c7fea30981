"""The folder that holds everything of a run."""

import contextlib
import json
import os
import shutil
import sys
import time
import weakref
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from fwlight.errors import CheckpointError, ConfigError, StorageError, one_line
from fwlight.integrity import Verified
from fwlight.run.checkpoint_io import load_checkpoint, newest_whole, step_of
from fwlight.run.files import remove_partial_files, write_atomically


class RunFolder:
    """Paths of a run, and where it goes on from.

        config.yaml          the resolved configuration
        run.json             what decides the results, the text's fingerprint, how the run failed
        metrics.csv          step, metric, value
        summary.json         the final metrics
        events.out.tfevents.*   TensorBoard's, of earlier versions below tensorboard/
        checkpoints/         last.ckpt, best.ckpt, step-000100.ckpt, each with its .sha256

    Make one with `open`.
    """

    def __init__(self, path: Path, *, is_rank_zero: bool) -> None:
        self.path = path
        self.is_rank_zero = is_rank_zero
        self.checkpoints = path / "checkpoints"
        earlier = path / "tensorboard"
        # Runs bear the name of the folder their events are in.
        self.tensorboard = earlier if earlier.is_dir() else path
        self.metrics_csv = path / "metrics.csv"
        self.summary_json = path / "summary.json"
        self.config_yaml = path / "config.yaml"
        self.run_json = path / "run.json"
        self.resume_from: Path | None = None
        """The checkpoint this run goes on from."""
        self.resume_step: int | None = None
        """Updates made there; 0 where an earlier start got to no checkpoint; None for a new run."""
        self.checkpoint: dict[str, Any] | None = None
        """What the checkpoint holds, until `take_checkpoint`."""
        self._places: set[Path] = set()
        """Folders of loggers and the like, which go with all that is in them."""
        self._lock: IO[str] | None = None
        self._new: list[Path] = []
        """What was not there before this start: its own files first, then folders inside out."""
        self._events: set[Path] | None = None
        """Event files that were there before this start, None once those of this one stay."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        resume: str,
        is_rank_zero: bool,
        verified: Verified | None = None,
    ) -> "RunFolder":
        """Make the folder, or find where its run goes on.

        Rank zero creates, locks and cleans the folder; the other ranks only read it.

        Args:
            path: The run's folder.
            resume: `never`: the folder must hold no run; `auto`: go on from `last.ckpt`, or if
                that is damaged from the newest whole checkpoint, or from the start if there is
                none; else the checkpoint to go on from.
            is_rank_zero: Whether this process writes.
            verified: What `fwlight.integrity.check_whole` has returned of the checkpoint.

        Raises:
            ConfigError: It holds a run and resume is `never`, or another process uses it.
            CheckpointError: The checkpoint to resume is missing or damaged, or all are.
            StorageError: It cannot be written.
        """
        folder = cls(Path(path).absolute(), is_rank_zero=is_rank_zero)
        holds_run = folder._holds_run()
        try:
            if is_rank_zero:
                folder._make_and_lock()
                if resume == "never" and holds_run:
                    raise ConfigError(
                        f"run_dir={path} already holds a run; resume=auto continues it, another "
                        "run_dir starts anew"
                    )
                remove_partial_files(folder.path)
                remove_partial_files(folder.checkpoints)
            if resume != "never":
                folder._find_start(resume, verified, holds_run=holds_run)
        except BaseException:
            folder.undo()
            folder.release()
            raise
        return folder

    def take_checkpoint(self) -> dict[str, Any] | None:
        """Return what the checkpoint holds, and hold it no longer: it may be large."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return checkpoint

    def place(self, name: str) -> Path:
        """Return the path of a folder for a part of the run; it is not made here."""
        path = self.path / name
        if self._lock is not None and not os.path.lexists(path):
            self._places.add(path)
            self._new.insert(0, path)
        return path

    def undo(self) -> None:
        """Remove what this start made, and nothing that was there; a run is kept."""
        if self.metrics_csv.exists() or any(self.checkpoints.glob("*.ckpt")):
            return
        events = self._event_files() if self._events is not None else set()
        for path in (*(events - (self._events or set())), *self._new):
            with contextlib.suppress(OSError):  # not made, or others have put something there
                if path in self._places:
                    shutil.rmtree(path)
                elif path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()

    def keep(self) -> None:
        """Leave everything where it is, whatever comes."""
        self._new, self._events = [], None

    def release(self) -> None:
        """Let another process use the folder."""
        self.keep()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *traceback: Any
    ) -> None:
        if error is not None:
            self.undo()
            if self.is_rank_zero:
                error.__dict__["run_json"] = self.run_json  # see `note_failure`
        self.release()

    def _holds_run(self) -> bool:
        files = (self.config_yaml, self.metrics_csv, self.summary_json)
        return any(file.exists() for file in files) or any(self.checkpoints.glob("*.ckpt"))

    def _event_files(self) -> set[Path]:
        return {*self.tensorboard.glob("events.out.tfevents.*")}

    def _make_and_lock(self) -> None:
        lock = self.path / ".lock"
        files = (lock, self.config_yaml, self.run_json)
        folders = (self.checkpoints, self.path, *self.path.parents)
        self._new = [path for path in (*files, *folders) if not os.path.lexists(path)]
        self._events = self._event_files()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("a+")
            # The folder of the checkpoints is the one that must not fail hours later.
            probe = self.checkpoints / f".probe.{os.getpid()}.partial"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        except OSError as error:
            self.undo()
            self.release()
            raise StorageError(
                f"run_dir={self.path} cannot be written ({error.strerror or error}); choose "
                "another run_dir or free some space"
            ) from error
        try:
            if not _taken(self._lock):
                owner = _owner(self._lock)
                self.release()
                raise ConfigError(
                    f"run_dir={self.path} is in use by process {owner}; wait for it or choose "
                    "another"
                )
        except OSError:
            _warn(f"the file system of run_dir={self.path} has no locks; start no second run there")
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        # A process that makes batches outlives by seconds one that is killed, and would hold the
        # lock so long.
        mine = weakref.ref(self)
        if hasattr(os, "register_at_fork"):  # else there is no forking either
            os.register_at_fork(after_in_child=lambda: (folder := mine()) and folder.release())

    def _find_start(self, resume: str, verified: Verified | None, *, holds_run: bool) -> None:
        if resume != "auto":
            found = Path(resume).absolute(), load_checkpoint(resume, verified=verified)
        else:
            found = self._find_checkpoint()
        if found is not None:
            self.resume_from, self.checkpoint = found
            self.resume_step = step_of(self.checkpoint)
        elif holds_run:
            self.resume_step = 0

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        last = self.checkpoints / "last.ckpt"
        files = sorted(self.checkpoints.glob("*.ckpt"))
        if not files:
            return None
        found = newest_whole([last], report=self._report) if last in files else None
        found = found or newest_whole([f for f in files if f != last], report=self._report)
        if found is None:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} is whole; start anew in another run_dir"
            )
        if last in files and found[0] != last:
            self._report(f"going on from {found[0]}")
        return found

    def _report(self, message: str) -> None:
        if self.is_rank_zero:
            _warn(message)


def note_failure(error: BaseException, code: int, line: str) -> None:
    """Keep in the folder of the run that an exception ended how it ended, until it is started anew.

    Args:
        error: The exception; it knows the folder it came out of.
        code: The exit code.
        line: What the user was told.
    """
    path: Path | None = getattr(error, "run_json", None)
    if path is None or not path.is_file():
        return
    with contextlib.suppress(OSError, ValueError, TypeError):  # full or damaged
        content = {**json.loads(path.read_text(encoding="utf-8")), "exit_code": code, "error": line}
        write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


def _taken(lock: IO[str]) -> bool:
    """Lock a file for oneself; who only looks whether it is locked holds it for a moment."""
    for wait in (0.01, 0.02, 0.05, 0.1, 0.2):
        if lock_descriptor(lock.fileno(), blocking=False):
            return True
        time.sleep(wait)
    return lock_descriptor(lock.fileno(), blocking=False)


def _owner(lock: IO[str]) -> str:
    with contextlib.suppress(OSError):  # Windows lets nobody read what is locked
        lock.seek(0)
        return lock.read().strip() or "unknown"
    return "unknown"


def _warn(message: str) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)
