"""What is done without where a system lacks it; imitated, as nothing here runs on such systems."""

import importlib.util
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from fwlight.errors import ConfigError, DataError
from fwlight.ops.native import build
from fwlight.run import RunFolder, signals
from fwlight.run.files import write_atomically
from tasks.io.locks import locked, remove_left_over
from tasks.position import TrainBatches


def test_without_sigusr1_the_other_signals_stop_a_run(monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    spec = importlib.util.spec_from_file_location("signals_elsewhere", signals.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    with (
        pytest.raises(elsewhere.Stopped, match="SIGTERM"),
        elsewhere.listening(before_exit=lambda *_: None),
    ):
        signal.raise_signal(signal.SIGTERM)


def test_without_the_calls_of_posix_folders_and_caches_are_locked_and_written(
    tmp_path, monkeypatch
):
    for name in ("register_at_fork", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr("shutil._use_fd_functions", False)  # as shutil finds for itself there
    with RunFolder.open(tmp_path, resume="auto", is_rank_zero=True) as folder:
        write_atomically(folder.summary_json, lambda file: file.write(b"{}"))
        with pytest.raises(ConfigError, match="in use by process"):
            RunFolder.open(tmp_path, resume="auto", is_rank_zero=True)
    assert folder.summary_json.read_bytes() == b"{}"
    (tmp_path / ".words.0123abcd.partial").mkdir()
    with locked(tmp_path / "words"):
        remove_left_over(tmp_path)
        assert (tmp_path / ".words.0123abcd.partial").exists()
    remove_left_over(tmp_path)
    assert not (tmp_path / ".words.0123abcd.partial").exists()


def test_without_forking_workers_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    batches = TrainBatches(int, n_batches=2, period=None, meaning={}, num_workers=2)
    with pytest.raises(DataError, match=r"task\.num_workers=2 .* give task\.num_workers=0"):
        list(batches)


def test_on_windows_no_kernels_are_compiled_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(build, "os", SimpleNamespace(name="nt"))
    build.library.cache_clear()
    build.build_obstacle.cache_clear()
    try:
        told = build.build_obstacle(torch.float32, "rules")
    finally:
        build.build_obstacle.cache_clear()
    assert told == "kernels are not compiled on this system, which is Windows"


def test_a_compiler_without_openmp_makes_kernels_without_it(tmp_path, monkeypatch):
    commands = []

    def run(command, *, temporary):
        commands.append(command)
        if "-fopenmp" in command:
            raise build.commands.CommandError("unsupported option '-fopenmp'")

    monkeypatch.setattr(build.commands, "run", run)
    made = build._compile(["c++"], "__clang__", "float", "rules", tmp_path)
    assert made == tmp_path / "rules.so"
    with_it, *without = commands
    assert "-fopenmp" in with_it
    assert [str(made) in command for command in without] == [False, True]
