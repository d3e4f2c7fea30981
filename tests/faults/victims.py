"""What is tortured: how it is started, where it is hurt, and what must come out of it.

A victim is hurt again and again in one place, by kills and by errors of the disk, until it ends by
itself. Then it must be what the same command made that nothing happened to.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from fwlight.ops.native import build
from tests.faults.processes import TINY, Ended, Running, assert_same_run

SHORT = ("trainer.max_steps=2", "trainer.val_check_interval=2", "optimizer.warmup_steps=0")


class Victim:
    """One short run, hurt at any change of the files in its folder.

    Args:
        folder: For its data, and for what its processes print.
        arguments: What is trained how.
    """

    CHANGES: Mapping[str, int] = {
        "*": 150,
        "*checkpoints/*": 40,
        "*.csv*": 2,
        "*.json*": 3,
        "*.yaml*": 3,
    }
    """Where it may be hurt, and how many such changes there are."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = [*TINY, f"task.path={write_text(folder / 'text.txt')}", *arguments]

    def start(self, place: Path, *, fault: dict | None = None) -> Running:
        where = [f"run_dir={place}", "resume=auto"]
        return Running(
            [*self.arguments, *where],
            folder=self.folder / "leg",
            fault=fault,
        )

    def complete(self, place: Path) -> None:
        """Let it end by itself."""
        ended = self.start(place).wait(900)
        assert ended.code == 0, ended.err

    def hurt(self, place: Path, chance: random.Random) -> dict | None:
        """Start it and hurt it; say how, or None if it ended before."""
        return self.hurt_at_change(place, chance)

    def hurt_at_change(self, place: Path, chance: random.Random, below: str = "") -> dict | None:
        at = chance.choice(list(self.CHANGES))
        n = int((self.CHANGES[at] + 1) ** chance.random())
        error = chance.choice((None, None, "ENOSPC", "EIO"))
        return self.fault_at_change(place, at=f"* {below}{at}", n=n, error=error)

    def fault_at_change(self, place: Path, **fault) -> dict | None:
        told = self.folder / "told"
        told.unlink(missing_ok=True)
        fault |= {"kind": "change", "folder": str(place), "told": str(told)}
        process = self.start(place, fault=fault)
        ended = process.wait(300)
        assert process.orphans(20) == []
        if not told.exists():
            assert ended.code == 0, ended.err
            return None
        done = {"change": told.read_text(), "error": fault["error"], "code": ended.code}
        assert ended.code in ((0, 5) if fault["error"] else self.killed()), (done, ended.err)
        told = self.told(ended, place)
        assert told.count("error: ") == int(ended.code == 5), (done, told)
        assert "Traceback" not in told, (done, told)
        return done

    def told(self, ended: Ended, place: Path) -> str:
        """What went wrong, in words."""
        return ended.err

    def killed(self) -> tuple[int, ...]:
        """Exit codes after a kill."""
        return (-signal.SIGKILL,)

    def compare(self, place: Path, whole: Path, *, logs: bool) -> None:
        """Hold it against one that nothing happened to; `logs`: none of them met an error."""
        assert_same_run(place, whole, logs=logs)
        assert not [*place.rglob("*.partial"), *place.rglob(".*.partial")]


class Training(Victim):
    """A long run, of several processes if wanted, hurt at any moment and in checkpoint writes."""

    def __init__(self, folder: Path, *, ranks: int = 1, steps: int = 2000) -> None:
        several = ["trainer=ddp", f"trainer.devices={ranks}"] if ranks > 1 else []
        super().__init__(
            folder,
            *several,
            "trainer.accumulate_grad_batches=2",
            f"trainer.max_steps={steps}",
            "trainer.log_every_n_steps=20",
            "trainer.val_check_interval=70",
            "callbacks.checkpoint.every_n_train_steps=9",
        )
        self.ranks = ranks

    def hurt(self, place: Path, chance: random.Random) -> dict | None:
        if chance.random() < 0.4:
            return self._in_write(place, chance)
        process = self.start(place)
        output = self.folder / "leg" / "stdout"
        while "run_dir" not in (output.read_text() if output.exists() else ""):
            time.sleep(0.02)
        delay = chance.uniform(0, 2 if self.ranks == 1 else 9)
        time.sleep(delay)
        members = process.members()
        one = self.ranks > 1 and members and chance.random() < 0.6
        victims = [chance.choice(members)] if one else members
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        ended = process.wait(300)
        assert process.orphans(20) == []
        if ended.code == 0:
            return None
        return {"in": "run", "after": round(delay, 3), "killed": len(victims), "of": len(members)}

    def _in_write(self, place: Path, chance: random.Random) -> dict | None:
        fault = {"kind": "write", "write": chance.randint(1, 6)}
        if chance.random() < 0.5:
            fault["bytes"] = chance.random()
        else:
            fault |= {"name": chance.randint(1, 3), "when": chance.choice(["before", "after"])}
        process = self.start(place, fault=fault)
        ended = process.wait(300)
        assert process.orphans(20) == []
        assert ended.code in (0, -signal.SIGKILL), (ended.code, ended.err)
        return None if ended.code == 0 else {"in": "write", **fault}


class Sweep(Victim):
    """Two runs of a sweep: the sweep is killed, one of its runs, or one at a change of files."""

    SEEDS = (1, 3)

    def __init__(self, folder: Path) -> None:
        seeds = f"seed={','.join(map(str, self.SEEDS))}"
        super().__init__(folder, "-m", seeds, "logger=none")

    def start(self, place: Path, *, fault: dict | None = None) -> Running:
        where = [f"run_dir={place}"]
        return Running([*self.arguments, *where], folder=self.folder / "leg", fault=fault)

    def hurt(self, place: Path, chance: random.Random) -> dict | None:
        finished = {path: path.stat().st_mtime_ns for path in place.glob("*/summary.json")}
        kind = chance.choice(("sweep", "run", "change", "change"))
        if kind == "change":
            done = self.hurt_at_change(place, chance, f"seed-{chance.choice(self.SEEDS)}/")
        else:
            done = self.killed_in(place, kind, delay=chance.uniform(0, 3))
        assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
        return done

    def killed_in(self, place: Path, kind: str, *, delay: float) -> dict | None:
        """Kill the sweep, or one of its runs, some seconds after the first has begun."""
        for log in place.glob("*.log"):
            log.unlink()
        process = self.start(place)
        while process.members() and not any(
            "run_dir" in log.read_text() for log in place.glob("*.log")
        ):
            time.sleep(0.05)
        time.sleep(delay)
        members = process.members()
        victims = [process.pid] if kind == "sweep" else self._runs(place)
        victims = [pid for pid in victims if pid in members][:1]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        ended = process.wait(300)
        assert ended.code in (0, *self.killed()), (ended.code, ended.err)
        # What is left of it stops by itself, and saves.
        until = time.monotonic() + 60
        while process.members() and time.monotonic() < until:
            time.sleep(0.1)
        assert process.orphans(0) == []
        return {"in": kind, "after": round(delay, 3)} if ended.code else None

    def _runs(self, place: Path) -> list[int]:
        found = [lock.read_text() for lock in place.glob("*/.lock")]
        return [int(text) for text in found if text]

    def told(self, ended: Ended, place: Path) -> str:
        return ended.err + "".join(log.read_text() for log in place.glob("*.log"))

    def killed(self) -> tuple[int, ...]:
        return (-signal.SIGKILL, 128 + signal.SIGKILL)

    def compare(self, place: Path, whole: Path, *, logs: bool) -> None:
        for seed in self.SEEDS:
            super().compare(place / f"seed-{seed}", whole / f"seed-{seed}", logs=logs)


class Caches(Victim):
    """Runs that fill caches: with encoded text, or pairs with their vocabulary, and kernels."""

    CHANGES: Mapping[str, int] = {"*": 25, "*rules-*": 1, "*fwlight-build-*": 5}

    def __init__(self, folder: Path, task: str) -> None:
        super().__init__(folder, *SHORT)
        if task == "translation":
            self.arguments = [*translation(folder), *SHORT]
        self.compiler = copying_compiler(folder / "compiler")

    def start(self, place: Path, *, fault: dict | None = None) -> Running:
        shutil.rmtree(place / "run", ignore_errors=True)
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        environment = cached_in(place / "cache", place / "tmp", self.compiler)
        fault = {"kind": "none", "cached_from": 0} | (fault or {})
        if "folder" in fault:
            fault["folder"] = str(place / "cache")
        return Running(
            [*self.arguments, f"run_dir={place / 'run'}"],
            folder=self.folder / "leg",
            fault=fault,
            environment=environment,
        )

    def compare(self, place: Path, whole: Path, *, logs: bool) -> None:
        super().compare(place / "run", whole / "run", logs=True)


def write_text(path: Path) -> Path:
    """Some thousand words with something to learn in them."""
    words, generator = [f"w{i}" for i in range(40)], random.Random(0)
    lines = (" ".join(generator.choices(words, k=9)) for _ in range(300))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def translation(folder: Path) -> list[str]:
    """The arguments of a translation of a hundred lines into themselves."""
    text = write_text(folder / "text.txt").read_text()
    for language in ("en", "de"):
        (folder / f"pairs.{language}").write_text("".join(text.splitlines(keepends=True)[:100]))
    return [
        *("task=translation", "size=tiny", "task.data=files", "task.vocab_size=100"),
        *(f"task.{split}={folder / 'pairs'}" for split in ("train", "valid", "test")),
        *("task.batch_tokens=60", "translate.beam=2", "callbacks=none", "logger=none"),
    ]


def cached_in(cache: Path, temporary: Path, compiler: Path) -> dict[str, str]:
    """The environment of a process that keeps everything in these folders."""
    return {"FWLIGHT_CACHE": str(cache), "TMPDIR": str(temporary), "CXX": str(compiler)}


def copying_compiler(path: Path) -> Path:
    """A compiler that takes no time: what it makes is a copy of this machine's kernels."""
    library = build.library(torch.float32)._name
    compiler, _ = build._compiler()
    path.write_text(
        f'#!/bin/sh\nfor word; do\n  test "$before" = -o && exec cp "{library}" "$word"\n'
        f'  before=$word\ndone\nexec {" ".join(compiler)} "$@"\n'
    )
    path.chmod(0o755)
    return path
