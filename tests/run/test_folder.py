"""The run folder: refuse, resume, lock, probe."""

import errno
import os
import shutil

import pytest
import torch

from fwlight.errors import CheckpointError, ConfigError, StorageError
from fwlight.run import RunFolder
from fwlight.run.checkpoint_io import save_checkpoint


def save(path, step):
    save_checkpoint({"state_dict": {}, "global_step": step, "t": torch.zeros(100)}, path)


def open_once(path, resume="auto"):
    with RunFolder.open(path, resume=resume, is_rank_zero=True) as folder:
        return folder


def test_new_folder_is_made_and_starts_anew(tmp_path):
    folder = open_once(tmp_path / "a" / "b", resume="never")
    assert folder.checkpoints.is_dir()
    assert folder.resume_from is None
    assert folder.resume_step is None
    assert open_once(tmp_path / "a" / "b").resume_step is None  # an empty one is no run


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"]
)
def test_folder_with_a_run_is_refused_and_resume_named(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="resume=auto") as caught:
        open_once(tmp_path, resume="never")
    assert caught.value.exit_code == 2
    RunFolder.open(tmp_path, resume="never", is_rank_zero=False)  # rank zero has decided already


def test_folder_with_other_files_only_is_taken(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert open_once(tmp_path, resume="never").resume_from is None


def test_resume_takes_last_even_if_a_copy_has_more_steps(tmp_path):
    folder = open_once(tmp_path)
    save(folder.checkpoints / "last.ckpt", 10)
    save(folder.checkpoints / "step-000020.ckpt", 20)
    folder = open_once(tmp_path)
    assert (folder.resume_from, folder.resume_step) == (folder.checkpoints / "last.ckpt", 10)


def test_resume_falls_back_to_the_newest_whole_checkpoint_and_says_so(tmp_path, capsys):
    folder = open_once(tmp_path)
    for step in (5, 20, 10):
        save(folder.checkpoints / f"step-{step:06d}.ckpt", step)
    save(folder.checkpoints / "last.ckpt", 30)
    (folder.checkpoints / "last.ckpt").write_bytes(b"")
    for rank_zero in (True, False):
        with RunFolder.open(tmp_path, resume="auto", is_rank_zero=rank_zero) as folder:
            found = (folder.resume_from, folder.resume_step)
        assert found == (folder.checkpoints / "step-000020.ckpt", 20)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (2 if rank_zero else 0)
        if rank_zero:
            assert "last.ckpt is damaged" in lines[0]
            assert "step-000020.ckpt" in lines[1]


def test_resume_without_any_whole_checkpoint_is_an_error(tmp_path):
    folder = open_once(tmp_path)
    (folder.checkpoints / "last.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole"):
        open_once(tmp_path)


def test_run_that_got_to_no_checkpoint_starts_again_from_step_zero(tmp_path):
    open_once(tmp_path).config_yaml.touch()
    folder = open_once(tmp_path)
    assert (folder.resume_from, folder.resume_step) == (None, 0)


def test_resume_from_a_path_reads_that_file(tmp_path):
    save(tmp_path / "other.ckpt", 4)
    folder = open_once(tmp_path / "run", resume=str(tmp_path / "other.ckpt"))
    assert (folder.resume_from, folder.resume_step) == (tmp_path / "other.ckpt", 4)
    for wrong in (tmp_path / "missing.ckpt", "https://127.0.0.1:9/last.ckpt"):
        with pytest.raises(CheckpointError):
            open_once(tmp_path / "run2", resume=str(wrong))


def test_second_user_of_a_folder_is_refused_until_it_is_released(tmp_path):
    folder = RunFolder.open(tmp_path, resume="auto", is_rank_zero=True)
    with pytest.raises(ConfigError, match=r"in use by process \d+"):
        RunFolder.open(tmp_path, resume="auto", is_rank_zero=True)
    RunFolder.open(tmp_path, resume="auto", is_rank_zero=False)
    folder.release()
    open_once(tmp_path)


@pytest.mark.fault(42)
def test_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fwlight.run.folder.lock_descriptor", refuse)
    open_once(tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the file system of run_dir=")
    assert "has no locks" in line


def test_refused_folder_is_not_left_locked(tmp_path):
    (tmp_path / "config.yaml").touch()
    for _ in range(2):
        with pytest.raises(ConfigError, match="resume=auto"):
            RunFolder.open(tmp_path, resume="never", is_rank_zero=True)
    with pytest.raises(CheckpointError):
        RunFolder.open(tmp_path, resume="missing.ckpt", is_rank_zero=True)
    open_once(tmp_path)


def test_folder_that_cannot_be_written_is_an_input_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        open_once(tmp_path / "file" / "run", resume="never")
    assert caught.value.exit_code == 5
    if shutil.os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(StorageError):
            open_once(tmp_path, resume="never")


def contents(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def fail_in(path, *, trained):
    with RunFolder.open(path, resume="auto", is_rank_zero=True) as folder:
        folder.config_yaml.touch()
        (folder.tensorboard / "events.out.tfevents.1").touch()
        if trained:
            folder.metrics_csv.touch()
        raise ConfigError


@pytest.mark.parametrize(
    "before",
    [
        (),
        ("a/notes.txt",),
        ("a/run/notes.txt",),
        ("a/run/.lock",),
        ("a/run/events.out.tfevents.0",),
    ],
)
def test_failed_start_leaves_what_was_there_and_no_more(tmp_path, before):
    path = tmp_path / "a" / "run"
    for name in before:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    there = contents(tmp_path)
    with pytest.raises(CheckpointError):
        open_once(path, resume=str(tmp_path / "missing.ckpt"))
    assert contents(tmp_path) == there
    with pytest.raises(ConfigError):
        fail_in(path, trained=False)
    assert contents(tmp_path) == there
    with pytest.raises(ConfigError):
        fail_in(path, trained=True)
    assert path.joinpath("events.out.tfevents.1").exists()
    assert {"a/run/config.yaml", *there} < set(contents(tmp_path))


def test_failed_start_leaves_a_run_alone(tmp_path):
    folder = open_once(tmp_path / "run")
    folder.config_yaml.touch()
    there = contents(tmp_path)
    with pytest.raises(ConfigError), RunFolder.open(folder.path, resume="auto", is_rank_zero=True):
        raise ConfigError
    with RunFolder.open(folder.path, resume="auto", is_rank_zero=True):
        for resume in ("auto", "never"):
            with pytest.raises(ConfigError):  # in use
                open_once(folder.path, resume=resume)
    assert contents(tmp_path) == there


def test_stray_temporary_files_are_removed(tmp_path):
    folder = open_once(tmp_path)
    stray = [folder.checkpoints / ".last.ckpt.123.partial", tmp_path / ".summary.json.9.partial"]
    for file in stray:
        file.touch()
    open_once(tmp_path)
    assert not any(file.exists() for file in stray)
