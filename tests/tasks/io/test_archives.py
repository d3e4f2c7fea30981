import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile

import pytest

from fwlight.errors import StorageError
from fwlight.types import DataError
from tasks.io import archives
from tasks.io.archives import extract, unpack

pytestmark = pytest.mark.fault(23)

FILES = {"set/train.txt": b"a b c\n" * 1000, "set/valid.txt": b"", "readme": b"hello"}


def _tar(path, files, *, kind=tarfile.REGTYPE, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return path


def _zip(path, files, *, mode=stat.S_IFREG):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (mode | 0o644) << 16
            file.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def _content(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "sizes.json"
    }


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz"])
def test_archive_is_extracted_once(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    mode = "w" if name == "set.tar" else "w:gz"
    path = tmp_path / name
    _zip(path, FILES) if name == "set.zip" else _tar(path, FILES, mode=mode)
    folder = extract(path)
    assert _content(folder) == FILES
    monkeypatch.setattr(archives, "unpack", lambda *_, **__: pytest.fail("unpacked again"))
    assert extract(path) == folder


def test_compressed_file_is_unpacked(tmp_path):
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"words"))
    folder = tmp_path / "out"
    folder.mkdir()
    unpack(tmp_path / "train.txt.gz", folder)
    assert _content(folder) == {"train.txt": b"words"}


@pytest.mark.parametrize("make", [_tar, _zip])
@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "..\\out", "C:\\out"])
def test_paths_that_lead_elsewhere_are_refused(tmp_path, make, name):
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="leads elsewhere") as caught:
        unpack(make(tmp_path / "archive", {"good": b"1", name: b"2"}), folder)
    assert caught.value.exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "inner"}
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="link or device"):
        unpack(_tar(tmp_path / "archive", {"x": b""}, kind=kind), folder)
    assert not _content(folder)


def test_links_in_a_zip_are_refused(tmp_path):
    with pytest.raises(DataError, match="a link"):
        unpack(_zip(tmp_path / "a.zip", {"x": b"/etc/passwd"}, mode=stat.S_IFLNK), tmp_path)


@pytest.mark.parametrize("make", [_tar, _zip])
def test_bombs_are_stopped_early(tmp_path, make, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    bomb = make(tmp_path / "bomb", {"a": bytes(10_000_000), "b": bytes(10_000_000)})
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DataError, match="unpacks to over 12,000,000 bytes"):
        unpack(bomb, folder, max_bytes=12_000_000)
    assert sum(map(len, _content(folder).values())) <= 12_000_000
    monkeypatch.setattr(archives, "MAX_FILES", 1)
    with pytest.raises(DataError, match="over 1 files"):
        unpack(make(tmp_path / "many", {"a": b"", "b": b""}), tmp_path / "folder" / "..")


def _header(kind, size, *, name="x"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def _records(n):
    """Of an extended header, each another one."""
    text = b"".join(b"%d %07d=x\n" % (len("12 0000000=x\n"), i) for i in range(n))
    return text + bytes(-len(text) % tarfile.BLOCKSIZE)


def _tar_of_headers(path, what):
    """In the packed file a few kilobytes, and in memory what tarfile keeps of it."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        if what in ("x", "g", "L", "K"):
            file.write(_header(what.encode(), 64 << 20))
            for _ in range(64):
                file.write(bytes(1 << 20))
        elif what == "chain":  # each of them is read before the file they are of
            for _ in range(80):
                file.write(_header(b"x", 60_000) + _records(60_000 // 13)[:60_416])
        elif what == "folders":
            file.write(b"".join(_header(b"5", 0, name=f"{i}") for i in range(1000)))
        file.write(_header(b"0", 0) + bytes(1024))
    return path


def _peak(function):
    tracemalloc.start()
    try:
        function()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.fault(44)
@pytest.mark.parametrize("what", ["x", "g", "L", "K", "chain", "folders"])
def test_tar_with_more_headers_than_files_is_refused_in_little_memory(tmp_path, what, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 500)
    path = _tar_of_headers(tmp_path / "a.tgz", what)
    assert path.stat().st_size < 1 << 20

    def refused():
        with pytest.raises(DataError, match=r"headers that are too long|over 500 files"):
            unpack(path, tmp_path / "out")

    assert _peak(refused) < 8 << 20


@pytest.mark.fault(44)
def test_headers_of_many_files_are_not_kept(tmp_path):
    path = tmp_path / "a.tgz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for i in range(20):
            text = b"".join(b"16 %05d%05d=x\n" % (i, j) for j in range(1000))
            file.write(_header(b"g", len(text)) + text + bytes(-len(text) % 512))
            file.write(_header(b"0", 1, name=f"{i}") + b"y" + bytes(511))
        file.write(bytes(1024))
    folder = tmp_path / "out"
    folder.mkdir()
    assert _peak(lambda: unpack(path, folder)) < 4 << 20
    assert len(_content(folder)) == 20


@pytest.mark.fault(44)
def test_zip_with_a_large_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 1 << 16)
    path = _zip(tmp_path / "a.zip", {f"{i:0200}": b"" for i in range(400)})
    with pytest.raises(DataError, match="headers that are too long"):
        unpack(path, tmp_path / "out")


@pytest.mark.fault(44)
@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_zip_that_chooses_how_much_memory_it_needs_is_refused(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", b"words", method)
    with pytest.raises(DataError, match="x is neither stored nor deflated"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["a/" * 65 + "x", "x" * 300, "/".join("ab" * 9)])
def test_names_that_no_folder_takes_are_refused(tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    path = _tar(tmp_path / "a.tgz", {name: b"words"})
    if len(name) < 65:
        return unpack(path, folder)
    with pytest.raises(DataError, match=r"over 64 folders|File name too long"):
        unpack(path, folder)


def test_folders_in_an_archive_are_no_files(tmp_path):
    path, folder = tmp_path / "a.tgz", tmp_path / "out"
    folder.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("set")
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
        member = tarfile.TarInfo("set/train.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"words"))
    unpack(path, folder)
    assert _content(folder) == {"set/train.txt": b"words"}


@pytest.mark.fault(41)
def test_pipe_is_no_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "a.zip")
    for function in (extract, lambda path: unpack(path, tmp_path)):
        with pytest.raises((DataError, StorageError), match=r"a\.zip is no file"):
            function(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.gz"])
@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
def test_damaged_archives_are_named(tmp_path, monkeypatch, name, damage):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    path, noise = tmp_path / name, bytes(i * i * 7 % 251 for i in range(20_000))
    if name == "a.gz":
        path.write_bytes(gzip.compress(noise))
    else:
        (_zip if name == "a.zip" else _tar)(path, {"x": noise})
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        raw[len(raw) // 2] ^= 255
    path.write_bytes(b"no archive" if damage == "text" else raw)
    with pytest.raises(DataError, match=f"{path} .*delete it") as caught:
        extract(path)
    assert "\n" not in str(caught.value)
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".lock"}
