"""Killed, or failed by the disk, before a change of files: in runs, in sweeps and in caches."""

import os
import signal

import pytest

from tests.faults.victims import Caches, Sweep, Victim
from tests.ops.discovery import needs_compiler


def points(*changes, short):
    """All are cases with --full, in `make test` one of them."""
    return [pytest.param(x, marks=() if x == short else pytest.mark.full) for x in changes]


def made_whole(victim, folder):
    victim.complete(folder)
    return victim, folder


def hurt_and_completed(victim, whole, place, at, error=None):
    """Start it, let it be hurt, start it again: the same must come out."""
    done = victim.fault_at_change(place, at=at, n=1, error=error)
    assert done is not None, "there was no such change"
    victim.complete(place)
    victim.compare(place, whole, logs=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return made_whole(Victim(folder), folder / "whole")


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "at",
    points(
        "mkdir checkpoints",
        "open .lock",
        "remove checkpoints/.probe.*",
        "rename run.json",
        "open .config.yaml.*",
        "rename config.yaml",
        "open events.out.*",
        "open metrics.csv",
        "open events.out.*.test",
        "open .summary.json.*",
        "rename summary.json",
        "remove .summary.json.*",
        short="rename config.yaml",
    ),
)
def test_run_killed_at_a_change_of_its_files_is_the_run(trained, tmp_path, at):
    hurt_and_completed(*trained, tmp_path / "run", at)


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "at",
    points(
        "rename config.yaml",
        "open .metrics.csv.*",
        "rename metrics.csv",
        "open events.out.*",
        short="rename metrics.csv",
    ),
)
def test_run_killed_once_more_when_it_goes_on_is_the_run(trained, tmp_path, at):
    victim, whole = trained
    place, fault = tmp_path / "run", {"kind": "kill", "step": 13}
    assert victim.start(place, fault=fault).wait().code == -signal.SIGKILL
    hurt_and_completed(victim, whole, place, at)


@pytest.mark.full
@pytest.mark.fault(5)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("at", ["rename config.yaml", "open .summary.json.*"])
def test_run_failed_by_the_disk_goes_on_later(trained, tmp_path, at, error):
    hurt_and_completed(*trained, tmp_path / "run", at, error)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    for seed in Sweep.SEEDS:  # alone, each is what it is in a sweep
        Victim(folder, f"seed={seed}", "logger=none").complete(folder / "whole" / f"seed-{seed}")
    return Sweep(folder), folder / "whole"


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    "at",
    points(
        "rename seed-3/config.yaml",
        "rename seed-3/checkpoints/last.ckpt",
        "open seed-3/.summary.json.*",
        "rename seed-3/summary.json",
        short="rename seed-3/checkpoints/last.ckpt",
    ),
)
def test_sweep_goes_on_where_a_run_of_it_was_killed(swept, tmp_path, at):
    victim, whole = swept
    done = victim.fault_at_change(tmp_path, at=at, n=1, error=None)
    assert done["code"] == 128 + signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert len(made) == 1  # the other went on
    victim.complete(tmp_path)
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())
    victim.compare(tmp_path, whole, logs=True)


@pytest.mark.full
@pytest.mark.fault(33)
def test_sweep_that_is_killed_goes_on(swept, tmp_path):
    victim, whole = swept
    assert victim.killed_in(tmp_path, "sweep", delay=0.5)
    victim.complete(tmp_path)
    victim.compare(tmp_path, whole, logs=True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    made = {}
    for task in ("lm", "translation"):
        folder = tmp_path_factory.mktemp(task)
        made[task] = made_whole(Caches(folder, task), folder / "whole")
    return made


@needs_compiler
@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "at",
    points(
        *("mkdir .text-*", "open .text-*/train.npy", "open .text-*/sizes.json", "rename text-*"),
        *("mkdir .pairs-*", "open .pairs-*/notes.txt", "open .pairs-*/sizes.json"),
        *("rename pairs-*", "mkdir .fwlight-build-*", "open .fwlight-build-*", "rename rules-*"),
        short="open .pairs-*/sizes.json",
    ),
)
def test_cache_whose_maker_was_killed_is_made(filled, tmp_path, at):
    victim, whole = filled["translation" if "pairs" in at else "lm"]
    hurt_and_completed(victim, whole, tmp_path, at)
    left = {name for name in os.listdir(tmp_path / "cache") if name.endswith(".partial")}
    assert not left
