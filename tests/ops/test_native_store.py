"""Where compiled kernels are kept: damaged ones, those of others, places that cannot hold them."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from fwlight.ops.native import build, store
from tests.ops.discovery import needs_compiler
from tests.ops.test_native_build import start

NAME = "rules-test-0123"


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    """A shared library with one function."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    compiler, _ = build._compiler()
    words = [*compiler, "-shared", "-fPIC", str(folder / "one.cpp"), "-o", str(folder / "one.so")]
    subprocess.run(words, check=True)
    return (folder / "one.so").read_bytes()


class Kernels:
    """A cache and a folder for temporary files of this test, and how often it was compiled."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.cache, self.temporary = folder / "cache", folder / "temporary"
        self.cache.mkdir(mode=0o755)
        self.temporary.mkdir()
        self.content, self.compiled = content, 0

    def compile(self, work: Path) -> Path:
        self.compiled += 1
        (work / "rules.so").write_bytes(self.content)
        return work / "rules.so"

    def start(self) -> int:
        """What a starting process does; what the library answers."""
        return (store.find(NAME) or store.make(NAME, self.compile)).one()

    @property
    def kept(self) -> list[Path]:
        return sorted([*self.cache.glob("*.so"), *self.temporary.rglob("*.so")])


@pytest.fixture
def kernels(tmp_path, content, monkeypatch) -> Kernels:
    made = Kernels(tmp_path, content)
    monkeypatch.setenv("FWLIGHT_CACHE", str(made.cache))
    monkeypatch.setattr(tempfile, "tempdir", str(made.temporary))
    return made


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :]


DAMAGES = {
    "cut": lambda content: content[: len(content) * 6 // 10],
    "end zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
    "bit flipped": flipped,
    "empty": lambda content: b"",
}


@pytest.mark.fault(29)
@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kernel_is_never_loaded_and_made_anew(kernels, damage, monkeypatch):
    assert kernels.start() == 1
    (path,) = kernels.kept
    path.unlink()  # this process has it loaded
    path.write_bytes(DAMAGES[damage](kernels.content))
    with monkeypatch.context() as patched:
        patched.setattr(store.ctypes, "CDLL", lambda path: pytest.fail("a damaged one was loaded"))
        assert store.find(NAME) is None
    assert kernels.start() == 1
    assert kernels.kept == [path]
    assert path.read_bytes() == kernels.content
    assert (kernels.start(), kernels.compiled) == (1, 2)
    assert [x.name for x in kernels.cache.iterdir()] == [path.name]


@needs_compiler
@pytest.mark.fault(32)
def test_what_killed_processes_were_making_goes(kernels):
    made = [kernels.cache / f".fwlight-build-{x}" for x in ("old", "old-file", "new")]
    made[0].mkdir()
    (made[0] / "rules.o").touch()
    made[1].touch()
    made[2].mkdir()
    theirs = kernels.cache / "build-old"  # which somebody else has put there
    theirs.mkdir()
    for path in (*made[:2], theirs):
        os.utime(path, (1, 1))
    assert kernels.start() == 1
    assert {*kernels.cache.iterdir()} == {made[2], theirs, *kernels.kept}


@needs_compiler
def test_a_kernel_is_on_the_disk_before_it_has_its_name(kernels, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda x: done.append(os.readlink(f"/proc/self/fd/{x}")) or sync(x)
    )
    monkeypatch.setattr(os, "replace", lambda *x: done.append("named") or replace(*x))
    kernels.start()
    assert done[1:] == ["named", str(kernels.cache)]
    assert Path(done[0]).parent == kernels.cache


@pytest.mark.fault(30)
@needs_compiler
@pytest.mark.parametrize("what", ["file", "folder", "owner"])
def test_what_somebody_else_could_have_written_is_not_loaded(kernels, what, monkeypatch):
    kernels.start()
    (path,) = kernels.kept
    if what == "owner" and os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    elif what == "owner":
        os.chown(path, 12345, 12345)
    else:
        (path if what == "file" else kernels.cache).chmod(0o777)
    assert store.find(NAME) is None


@pytest.mark.fault(30)
@needs_compiler
def test_in_a_folder_that_others_can_write_no_kernel_is_kept(kernels):
    kernels.cache.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others can write there") as told:
        kernels.start()
    assert str(kernels.cache) in str(told[0].message)
    assert kernels.kept[0].parent.parent == kernels.temporary


@contextlib.contextmanager
def unfit(kernels: Kernels, kind: str, monkeypatch):
    """Let the cache's file system be mounted noexec, be full, or run no code for another reason."""
    real, load, probe = os.statvfs, store.ctypes.CDLL, tempfile.TemporaryFile
    inside = lambda path: str(path).startswith(str(kernels.cache))  # noqa: E731

    def refuse(path, otherwise, *arguments, **options):
        if inside(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return otherwise(*arguments, **options)

    with monkeypatch.context() as patched:
        if kind == "noexec":
            flags = SimpleNamespace(f_flag=os.ST_NOEXEC)
            patched.setattr(os, "statvfs", lambda x: flags if inside(x) else real(x))
        elif kind == "full":
            patched.setattr(tempfile, "TemporaryFile", lambda **x: refuse(x["dir"], probe, **x))
        else:
            patched.setattr(store.ctypes, "CDLL", lambda x: refuse(x, load, x))
        yield


@pytest.mark.fault(30)
@needs_compiler
@pytest.mark.parametrize("kind", ["noexec", "full", "not loaded"])
def test_a_cache_that_holds_no_kernels_is_replaced_once_and_for_all(kernels, kind, monkeypatch):
    with unfit(kernels, kind, monkeypatch):
        with pytest.warns(RuntimeWarning) as told:
            assert kernels.start() == 1
        (warning,) = told
        place = kernels.kept[-1].parent
        assert place.parent == kernels.temporary
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert all(str(x) in str(warning.message) for x in (kernels.cache, place))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert kernels.start() == 1
    assert kernels.compiled == 1
    # A second kernel goes to the same place.
    with unfit(kernels, kind, monkeypatch), pytest.warns(RuntimeWarning):
        store.make("rules-other-0", kernels.compile)
    assert list(kernels.temporary.iterdir()) == [place]


@pytest.mark.fault(30)
@needs_compiler
def test_where_no_place_holds_a_kernel_the_first_reason_is_told_and_nothing_is_left(
    kernels, monkeypatch
):
    flags = SimpleNamespace(f_flag=os.ST_NOEXEC)
    monkeypatch.setattr(os, "statvfs", lambda path: flags)
    with pytest.raises(OSError, match="noexec") as error:
        kernels.start()
    assert str(kernels.cache) in str(error.value)
    assert kernels.compiled == 0
    assert not [*kernels.cache.iterdir(), *kernels.temporary.iterdir()]


SLOW = """#!/bin/sh
case "$*" in
  *rules.cpp*) echo $$ > {folder}/pid; sleep 600 & echo $! > {folder}/child; wait;;
  *) echo 13;;
esac
"""


def is_running(number: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.fault(32)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_compiler_ends_with_the_process_that_started_it(tmp_path, number):
    compiler = tmp_path / "compiler"
    compiler.write_text(SLOW.format(folder=tmp_path))
    compiler.chmod(0o755)
    process = start(tmp_path, CXX=str(compiler), FWLIGHT_CACHE=str(tmp_path), TMPDIR=str(tmp_path))
    files = [tmp_path / "pid", tmp_path / "child"]
    deadline = time.monotonic() + 120
    while not all(x.exists() and x.read_text() for x in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    numbers = [int(x.read_text()) for x in files]
    assert all(is_running(x) for x in numbers)
    process.send(number)
    process.wait()
    while any(is_running(x) for x in numbers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(x) for x in numbers)
