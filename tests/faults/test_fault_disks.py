"""Faults of disks: killed in a write, full, read-only, another one, used twice."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.faults.processes import (
    ROOT,
    Running,
    assert_same_run,
    rows,
    run,
    small_disk,
    weights,
)

full = pytest.mark.full


def write(**where):
    return {"kind": "write", "write": 3, **where}


MOMENTS = [
    pytest.param(write(bytes=0), marks=full),
    pytest.param(write(bytes=1), marks=full),
    write(bytes=0.5),
    pytest.param(write(bytes=1.0), marks=full),
    *(
        pytest.param(
            write(name=name, when=when), marks=() if (name, when) == (2, "before") else full
        )
        for name in (1, 2, 3)
        for when in ("before", "after")
    ),
]
"""The third checkpoint, `last.ckpt` of step 10: digests, file and digest get their names."""


def check_killed_write(fault, tiny, whole, folder, output):
    arguments = [*tiny, f"run_dir={folder}", "resume=auto"]
    ended = run(arguments, folder=output, fault=fault)
    assert ended.code == -signal.SIGKILL, ended.err
    shutil.copytree(folder, output / "left")
    placed = fault.get("name") == 3 or (fault.get("name"), fault.get("when")) == (2, "after")
    resumed = run(arguments, folder=output)
    assert resumed.code == 0, resumed.err
    assert f"last.ckpt after step {10 if placed else 5}" in resumed.out
    assert not resumed.warnings
    assert not [*folder.rglob("*.partial"), *folder.rglob(".*.partial")]
    assert_same_run(folder, whole)


@pytest.mark.fault(2)
@pytest.mark.parametrize("fault", MOMENTS, ids=str)
def test_kill_in_a_checkpoint_write_loses_neither(fault, tiny, whole, tmp_path):
    check_killed_write(fault, tiny, whole, tmp_path / "run", tmp_path / "output")


@full
@pytest.mark.fault(3)
@pytest.mark.parametrize("fault", MOMENTS, ids=str)
def test_kill_in_a_write_to_another_file_system_loses_neither(fault, tiny, whole, tmp_path):
    with small_disk(tmp_path / "disk", "64m") as disk:
        assert os.stat(disk).st_dev != os.stat(tmp_path).st_dev
        check_killed_write(fault, tiny, whole, disk / "run", tmp_path / "output")


@pytest.mark.fault(5)
def test_full_disk_keeps_the_old_checkpoint_and_the_run_goes_on_later(tiny, whole, tmp_path):
    with small_disk(tmp_path / "disk", "16m") as disk:
        arguments = [*tiny, f"run_dir={disk / 'run'}", "resume=auto"]
        filler = disk / "filler"
        ended = run(
            arguments,
            folder=tmp_path / "output",
            fault={"kind": "fill", "step": 12, "file": str(filler)},
        )
        assert ended.code == 5, ended.err
        assert len(ended.errors) == 1
        assert "checkpoint" in ended.errors[0]
        assert "No space left" in ended.errors[0]
        checkpoints = disk / "run" / "checkpoints"
        assert not [*checkpoints.glob(".*.partial")]
        assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 10
        filler.unlink()
        resumed = run(arguments, folder=tmp_path / "output")
        assert resumed.code == 0, resumed.err
        assert_same_run(disk / "run", whole)


@pytest.mark.fault(6)
@pytest.mark.parametrize("kind", ["full", pytest.param("read-only", marks=full)])
def test_tensorboard_that_cannot_be_written_is_one_warning(shown, whole, tmp_path, kind):
    folder = tmp_path / "run" / "tensorboard"
    with small_disk(folder, "4k"):
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        ended = run([*shown, f"run_dir={tmp_path / 'run'}"], folder=tmp_path / "output")
        assert ended.code == 0, ended.err
        assert len(ended.err.splitlines()) == 1, ended.err
        assert str(folder) in ended.warnings[0]
    assert_same_run(tmp_path / "run", whole)


@full
@pytest.mark.fault(6)
def test_metrics_on_a_full_disk_are_warned_of_and_checkpoints_go_on(shown, whole, tmp_path):
    with small_disk(tmp_path / "disk", "16m") as disk:
        with small_disk(disk / "run" / "checkpoints", "16m") as checkpoints:
            ended = run(
                [*shown, f"run_dir={disk / 'run'}"],
                folder=tmp_path / "output",
                fault={"kind": "fill", "step": 12, "file": str(disk / "filler")},
            )
            assert ended.code == 5
            assert "summary.json" in ended.errors[0]
            assert sum("metrics.csv" in line for line in ended.warnings) == 1
            assert sum("TensorBoard" in line for line in ended.warnings) == 1
            last = weights(checkpoints / "last.ckpt")
        expected = weights(whole / "checkpoints" / "last.ckpt")
        assert all(torch.equal(last[name], expected[name]) for name in expected)


@pytest.mark.fault(6)
def test_output_to_a_full_disk_changes_nothing(tiny, whole, tmp_path):
    ended = run([*tiny, f"run_dir={tmp_path / 'run'}"], folder=tmp_path / "output", out="/dev/full")
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.fault(7)
@pytest.mark.parametrize("kind", ["read-only", "full", "file"])
def test_run_folder_that_cannot_be_written_is_found_before_the_first_step(tiny, tmp_path, kind):
    with small_disk(tmp_path / "disk", "32k") as disk:
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        elif kind == "full":
            fill = ["dd", "if=/dev/zero", f"of={disk / 'filler'}"]
            assert subprocess.run(fill, capture_output=True).returncode
        else:
            (disk / "run").touch()
        ended = run([*tiny, f"run_dir={disk / 'run'}"], folder=tmp_path / "output")
        assert ended.code == 5
        assert len(ended.errors) == 1
        assert str(disk / "run") in ended.errors[0]
        assert ended.out == ""


@pytest.mark.fault(25)
def test_second_process_in_a_run_folder_is_refused(tiny, whole, tmp_path):
    told, arguments = tmp_path / "told", [*tiny, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    first = Running(
        arguments,
        folder=tmp_path / "first",
        fault={"kind": "announce", "step": 12, "file": str(told), "seconds": 3},
    )
    while not told.exists():
        time.sleep(0.05)
    second = run(arguments, folder=tmp_path / "second")
    assert second.code == 2
    assert str(first.pid) in second.errors[0]
    assert first.wait().code == 0
    assert_same_run(tmp_path / "run", whole)


@full
@pytest.mark.fault(28)
def test_without_home_and_with_a_read_only_package(tiny, tmp_path):
    script = (
        f'mount --bind "{ROOT}" "{ROOT}" && mount -o remount,ro,bind "{ROOT}" && '
        f'! touch "{ROOT}/x" 2>/dev/null && cd "{tmp_path}" && exec "$@"'
    )
    command = [sys.executable, str(ROOT / "train.py"), *tiny, f"run_dir={tmp_path / 'run'}"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "XDG_CACHE_HOME", "FWLIGHT_CACHE")
    }
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        env=environment,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (24, "test/loss") in rows(tmp_path / "run")
