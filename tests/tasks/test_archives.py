import gzip
import io
import stat
import tarfile
import zipfile

import pytest

from fwlight.types import DataError
from tasks import archives
from tasks.archives import extract, unpack

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
