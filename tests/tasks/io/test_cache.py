import errno
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from fwlight.errors import StorageError
from tasks.io import locks
from tasks.io.cache import ArrayWriter, cached_folder, read_array
from tasks.io.locks import locked

pytestmark = pytest.mark.fault(25)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _write(folder, numbers=(1, 2, 3)):
    with ArrayWriter(folder / "a.npy", np.int32) as writer:
        for number in numbers:
            writer.append(np.array([number]))


def _partial(cache) -> list:
    return [path for path in cache.rglob("*") if "partial" in path.name]


def test_folder_is_built_once_under_its_key(cache):
    calls = []
    for key in ("one", "one", "two"):
        folder = cached_folder("words", key=key, build=lambda f: (calls.append(f), _write(f)))
        assert folder == cache / f"words-{key}"
        assert read_array(folder / "a.npy").tolist() == [1, 2, 3]
    assert len(calls) == 2
    assert not _partial(cache)


def test_array_of_many_pieces_is_what_numpy_reads(tmp_path):
    pieces = [np.arange(n, dtype=np.int64) for n in (0, 1, 70_000, 3)]
    with ArrayWriter(tmp_path / "a.npy", np.int32) as writer:
        for piece in pieces:
            writer.append(piece)
    whole = np.load(tmp_path / "a.npy")
    assert whole.dtype == np.int32
    assert np.array_equal(whole, np.concatenate(pieces))
    mapped = read_array(tmp_path / "a.npy")
    assert mapped.dtype == torch.int32
    mapped[0] = 9  # a page of this process's own
    assert read_array(tmp_path / "a.npy")[0] == 0


def test_empty_array_is_read():
    folder = cached_folder("words", key="none", build=lambda f: _write(f, ()))
    assert read_array(folder / "a.npy").tolist() == []


def test_failed_build_leaves_nothing(cache):
    def fail(folder):
        _write(folder)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        cached_folder("words", key="k", build=fail)
    assert not (cache / "words-k").exists()
    assert not _partial(cache)


def test_full_disk_is_one_line_with_a_remedy(cache):
    def fail(folder):
        raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match=r"words-k .*No space left.*FWLIGHT_CACHE") as caught:
        cached_folder("words", key="k", build=fail)
    assert caught.value.exit_code == 5
    assert not _partial(cache)


@pytest.mark.parametrize("damage", ["cut", "gone", "no sizes", "sizes damaged"])
def test_damaged_folder_is_built_anew(damage):
    folder = cached_folder("words", key="k", build=_write)
    if damage == "cut":
        (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "a.npy").unlink()
    elif damage == "no sizes":
        (folder / "sizes.json").unlink()
    else:
        (folder / "sizes.json").write_text("{")
    again = cached_folder("words", key="k", build=_write)
    assert again == folder
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]
    assert json.loads((folder / "sizes.json").read_text()) == {
        "a.npy": (folder / "a.npy").stat().st_size
    }


def _build_slowly(log):
    def build(folder):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        _write(folder)

    folder = cached_folder("words", key="k", build=build)
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]


def _start(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_two_processes_at_once_build_once(tmp_path):
    log = tmp_path / "log"
    processes = [_start(_build_slowly, log) for _ in range(2)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"


def _build_for_ever(started):
    def build(folder):
        _write(folder)
        started.touch()
        time.sleep(60)

    cached_folder("words", key="k", build=build)


@pytest.mark.fault(32)
def test_killed_half_way_the_next_builds_and_cleans(tmp_path, cache):
    started = tmp_path / "started"
    process = _start(_build_for_ever, started)
    while not started.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert _partial(cache)
    assert not (cache / "words-k").exists()
    folder = cached_folder("words", key="k", build=_write)
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]
    assert not _partial(cache)


@pytest.mark.fault(32)
def test_left_over_of_another_key_goes_unless_it_is_being_made(cache):
    for name in (".words-old.1234.partial", ".text-k.0123abcd.partial"):
        (cache / name).mkdir(parents=True)
    with locked(cache / "text-k"):
        cached_folder("words", key="k", build=_write)
        assert _partial(cache) == [cache / ".text-k.0123abcd.partial"]
    cached_folder("words", key="k", build=_write)
    assert not _partial(cache)


@pytest.mark.fault(42)
def test_file_system_without_locks_is_one_warning(cache, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    locks._tell_of_no_locks.cache_clear()

    def build(folder):  # another process has the same idea
        cached_folder("words", key="k", build=_write)
        _write(folder)

    for _ in range(2):
        folder = cached_folder("words", key="k", build=build)
        assert folder == cache / "words-k"
        assert read_array(folder / "a.npy").tolist() == [1, 2, 3]
    assert not _partial(cache)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: the file system of the cache has no locks (No locks available)"
    )


def test_stopped_builder_is_named_and_not_waited_for_for_ever(tmp_path, cache, monkeypatch, capsys):
    started = tmp_path / "started"
    process = _start(_build_for_ever, started)
    while not started.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(locks, "TOLD_AFTER", 0.2)
        monkeypatch.setattr(locks, "PATIENCE", 0.5)
        folder = cached_folder("words", key="k", build=_write)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert cache not in folder.parents
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]
    told, warning = capsys.readouterr().err.splitlines()
    assert told == f"waiting for process {process.pid}, which makes {cache / 'words-k'}"
    assert f"process {process.pid}, which has written nothing for 0.5 s" in warning


class _Clock:
    """Time that passes while somebody sleeps, and what else happens meanwhile."""

    def __init__(self, meanwhile):
        self.now, self.meanwhile = 0.0, meanwhile

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile(self.now)


def test_builder_that_goes_on_writing_is_waited_for(tmp_path, monkeypatch):
    def write(now):
        with (tmp_path / ".words.1234.partial").open("a") as file:
            file.write("x" * (now < 900))

    clock = _Clock(write)
    monkeypatch.setattr(locks, "time", clock)
    with (
        locked(tmp_path / "words"),
        pytest.raises(StorageError, match=f"process {os.getpid()}"),
        locked(tmp_path / "words"),
    ):
        pass
    assert 900 + locks.PATIENCE - 1 < clock.now < 900 + locks.PATIENCE + 1


@pytest.mark.fault(41)
@pytest.mark.parametrize("name", [".words-k.lock", "words-k/sizes.json"])
def test_pipe_in_the_cache_is_not_waited_for(cache, name):
    (cache / "words-k").mkdir(parents=True)
    os.mkfifo(cache / name)
    folder = cached_folder("words", key="k", build=_write)
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]


def test_link_in_place_of_a_lock_is_not_followed(cache, tmp_path):
    (tmp_path / "mine").write_text("mine")
    cache.mkdir()
    (cache / ".words-k.lock").symlink_to(tmp_path / "mine")
    cached_folder("words", key="k", build=_write)
    assert (tmp_path / "mine").read_text() == "mine"


def test_cache_that_cannot_be_written_is_read(cache, monkeypatch, capsys):
    folder = cached_folder("words", key="k", build=_write)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cached_folder("words", key="k", build=lambda _: pytest.fail("built")) == folder
    elsewhere = cached_folder("words", key="other", build=_write)
    assert cache not in elsewhere.parents
    assert read_array(elsewhere / "a.npy").tolist() == [1, 2, 3]
    assert "cannot be written (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("place", [None, "/proc/self"])
def test_without_a_cache_the_folder_goes_with_the_process(place, monkeypatch):
    for variable in ("FWLIGHT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    if place:
        monkeypatch.setenv("FWLIGHT_CACHE", place)
    folder = cached_folder("words", key="k", build=_write)
    assert read_array(folder / "a.npy").tolist() == [1, 2, 3]


def test_unreadable_array_is_one_line(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(StorageError, match=r"a\.npy cannot be read"):
        read_array(tmp_path / "a.npy")
