"""Checkpoint files: atomic, verified, without code."""

import errno
import os
import pickle
import resource
import shutil
import signal
import zipfile

import pytest
import torch

from fwlight.errors import CheckpointError, StorageError
from fwlight.run import checkpoint_io, files
from fwlight.run.checkpoint_io import (
    AtomicCheckpointIO,
    digest_path,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
)


def checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3000, generator=generator)
    return {"state_dict": {"weight": weight}, "global_step": step}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(checkpoint(1), path)
    return path


def in_child(action):
    """Run an action in a process of its own and return how that ended."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action() or 0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_checkpoint_is_read_back_with_a_digest_that_sha256sum_reads(saved):
    assert load_checkpoint(saved)["global_step"] == 1
    torch.testing.assert_close(
        load_checkpoint(saved)["state_dict"]["weight"],
        checkpoint(1)["state_dict"]["weight"],
        rtol=0,
        atol=0,
    )
    assert digest_path(saved).read_text() == f"{checkpoint_io.sha256(saved)}  last.ckpt\n"
    assert sorted(p.name for p in saved.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_plugin_ignores_the_wish_to_run_code(saved):
    assert AtomicCheckpointIO().load_checkpoint(saved, weights_only=False)["global_step"] == 1
    AtomicCheckpointIO().remove_checkpoint(saved)
    assert not list(saved.parent.iterdir())


def kill_after_bytes(monkeypatch, fraction):
    """Die once this fraction of the checkpoint is written."""
    original = torch.save

    def save(data, file):
        original(data, file)
        size = file.tell()
        file.truncate(int(size * fraction) if fraction != "one" else 1)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", save)


def kill_around_replace(monkeypatch, number, when):
    """Die before or after the n-th file is put in place."""
    original, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)
        if len(calls) == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "replace", replace)


FAULTS = [(kill_after_bytes, (f,)) for f in (0, "one", 0.5, 1)] + [
    (kill_around_replace, (number, when)) for number in (1, 2, 3) for when in ("before", "after")
]


@pytest.mark.parametrize(("fault", "arguments"), FAULTS)
@pytest.mark.parametrize("earlier_kill", [False, True])
def test_kill_during_a_write_leaves_the_old_or_the_new_checkpoint(
    saved, monkeypatch, fault, arguments, earlier_kill
):
    if earlier_kill:  # one that left both digests behind, with the old file in place
        with monkeypatch.context() as patch:
            kill_around_replace(patch, 2, "before")
            assert in_child(lambda: save_checkpoint(checkpoint(7), saved)) == -signal.SIGKILL
        assert load_checkpoint(saved)["global_step"] == 1
    with monkeypatch.context() as patch:
        fault(patch, *arguments)
        assert in_child(lambda: save_checkpoint(checkpoint(2), saved)) == -signal.SIGKILL
    placed = fault is kill_around_replace and arguments not in [
        (1, "before"),
        (1, "after"),
        (2, "before"),
    ]
    assert load_checkpoint(saved)["global_step"] == (2 if placed else 1)
    files.remove_partial_files(saved.parent)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    save_checkpoint(checkpoint(3), saved)
    assert load_checkpoint(saved)["global_step"] == 3


def test_checkpoint_copied_without_its_digest_survives_a_killed_write(saved, monkeypatch):
    digest_path(saved).unlink()
    with monkeypatch.context() as patch:
        kill_around_replace(patch, 1, "after")
        assert in_child(lambda: save_checkpoint(checkpoint(2), saved)) == -signal.SIGKILL
    assert load_checkpoint(saved)["global_step"] == 1


@pytest.mark.fault(41)
def test_pipe_in_place_of_the_digest_is_not_waited_for(saved):
    digest_path(saved).unlink()
    os.mkfifo(digest_path(saved))
    assert load_checkpoint(saved)["global_step"] == 1


def test_full_disk_keeps_the_old_checkpoint_and_removes_the_temporary_file(saved):
    def write_with_a_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            save_checkpoint(checkpoint(2), saved)
        except StorageError as error:
            told = (str(saved), "resume=auto", "(File too large)")
            return 17 if all(text in str(error) for text in told) else 1

    assert in_child(write_with_a_full_disk) == 17
    assert load_checkpoint(saved)["global_step"] == 1
    assert sorted(p.name for p in saved.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_disk_that_fails_at_the_last_moment_keeps_the_old_checkpoint(saved, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        save_checkpoint(checkpoint(2), saved)
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    assert load_checkpoint(saved)["global_step"] == 1


def test_temporary_file_is_in_the_target_folder(saved, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "save", lambda data, file: seen.append(file.name) or file.write(b""))
    save_checkpoint(checkpoint(2), saved)
    assert os.path.dirname(seen[0]) == str(saved.parent)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = b""
    elif kind == "text":
        content = b"not a checkpoint\n" * 100
    elif kind == "truncated":
        content = content[: len(content) // 2]
    else:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(kind))
            inside = archive.read(name)
        content[content.index(inside) + len(inside) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "data.pkl", "data/0"])
@pytest.mark.parametrize("with_digest", [True, False])
def test_damaged_checkpoint_is_refused_and_the_newest_whole_one_found(
    saved, tmp_path, kind, with_digest
):
    for step in (5, 12, 9):
        save_checkpoint(checkpoint(step), tmp_path / f"step-{step:06d}.ckpt")
    damage(saved, kind)
    if not with_digest:
        digest_path(saved).unlink()
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(saved)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    reports = []
    found = newest_whole(sorted(tmp_path.glob("*.ckpt")), report=reports.append)
    assert found is not None
    assert (found[0], found[1]["global_step"]) == (tmp_path / "step-000012.ckpt", 12)
    assert len(reports) == 1
    assert str(saved) in reports[0]


def test_url_missing_file_folder_and_foreign_content_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    for path, message in (
        ("http://127.0.0.1:9/last.ckpt", "URL"),
        ("S3://bucket/last.ckpt", "URL"),
        (tmp_path / "none.ckpt", "there is no checkpoint"),
        (tmp_path, "there is no checkpoint"),
        (tmp_path / "list.ckpt", "not a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def spoil_directory(path, member, field, value):
    """Change a field of a member in the archive's directory, which no check sum covers."""
    content = bytearray(path.read_bytes())
    start = content.rindex(f"/{member}".encode())
    start = content.rindex(b"PK\1\2", 0, start)
    content[start + field] ^= value
    path.write_bytes(content)


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    ("field", "value"),
    [(38, 1 << 4), (36, 1), (8, 1), (5, 1), (10, 8), (46 + 8, 1)],
    ids=["folder", "text", "encrypted", "system", "compressed", "name"],
)
@pytest.mark.parametrize("member", ["data/0", "data.pkl"])
def test_archive_whose_directory_torch_would_not_write_is_refused(saved, member, field, value):
    digest_path(saved).unlink()
    spoil_directory(saved, member, field, value)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved)


@pytest.mark.fault(36)
def test_archive_of_another_writer_is_refused(saved, tmp_path):
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "new.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="flags or attributes"):
        load_checkpoint(tmp_path / "new.ckpt")


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_malicious_checkpoint_is_refused_and_not_run(tmp_path, form):
    path, ran = tmp_path / "evil.ckpt", tmp_path / "ran"
    content = {"state_dict": {}, "payload": Payload(ran)}
    if form == "torch":
        torch.save(content, path)
        shutil.copy(path, tmp_path / "copy.ckpt")
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not ran.exists()


def test_checkpoint_that_names_code_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    save_checkpoint({**checkpoint(1), "hyper_parameters": {"_instantiator": "os.system"}}, path)
    with pytest.raises(CheckpointError, match="code"):
        load_checkpoint(path)
