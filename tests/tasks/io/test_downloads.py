"""Downloads from a server on this machine that fails in the usual ways."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fwlight.errors import StorageError
from tasks.io import downloads, transfers
from tasks.io.downloads import Download, data_folder, fetch
from tasks.io.locks import locked

pytestmark = pytest.mark.fault(24)

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Server(ThreadingHTTPServer):
    """Answers the n-th request as the n-th word of `script` says, the last word for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.ranges, self.tag = ["fine"], [], '"one"'

    def url(self, name="file") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        behaviour = self.server.script[0]
        if len(self.server.script) > 1:
            self.server.script.pop(0)
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if behaviour.isdigit():
            return self.send_error(int(behaviour))
        if behaviour in _LIES:
            with contextlib.suppress(OSError):  # nobody listens any more
                _LIES[behaviour](self)
            return None
        body = CONTENT[::-1] if behaviour == "other" else CONTENT
        start = 0
        if wanted and self.headers["If-Range"] == self.server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if behaviour in ("cut", "stall"):
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.wfile.flush()
            if behaviour == "stall":
                time.sleep(1.5)
            return None
        self.wfile.write(body[start:])

    def answer(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def continue_other(self, *, tag='"one"', total=1_024_000, start=None):
        """Go on without a look at If-Range."""
        start = int(self.headers["Range"][6:-1]) if start is None else start
        self.answer(206, ETag=tag, Content_Range=f"bytes {start}-{total - 1}/{total}")
        self.wfile.write(CONTENT[::-1][start:] + bytes(max(0, total - len(CONTENT))))

    def for_ever(self, piece, *, pause=0.0):
        while True:
            self.wfile.write(piece)
            time.sleep(pause)

    def log_message(self, *_):
        pass


def _drip_head(handler):
    handler.wfile.write(b"HTTP/1.0 200 Fine\r\nX: ")
    handler.for_ever(b"x", pause=0.02)


def _drip(handler):
    handler.answer(200, Content_Length=len(CONTENT))
    handler.for_ever(b"x", pause=0.02)


def _endless(handler):
    handler.answer(200)
    handler.for_ever(bytes(1 << 16))


def _endless_page(handler):
    handler.answer(302, Location="/file")
    handler.for_ever(bytes(1 << 16))


_LIES = {
    "another tag": lambda handler: handler.continue_other(tag='"two"'),
    "no tag": lambda handler: handler.continue_other(tag=""),
    "another total": lambda handler: handler.continue_other(total=len(CONTENT) + 1),
    "another place": lambda handler: handler.continue_other(start=7),
    "length abc": lambda handler: handler.answer(200, Content_Length="abc"),
    "length -1": lambda handler: handler.answer(200, Content_Length="-1"),
    "length 9e9": lambda handler: handler.answer(200, Content_Length="9" * 5000),
    "huge": lambda handler: handler.answer(200, Content_Length=1 << 50),
    "to ftp": lambda handler: handler.answer(302, Location="ftp://127.0.0.1/x"),
    "to file": lambda handler: handler.answer(301, Location="file:///etc/passwd"),
    "in circles": lambda handler: handler.answer(302, Location=f"{handler.path}"),
    "no content": lambda handler: handler.answer(204),
    "drip": _drip,
    "drip in the head": _drip_head,
    "endless": _endless,
    "endless page": _endless_page,
}


@pytest.fixture
def server():
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setattr(transfers, "TIMEOUT", 0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def _fetch(server, folder, *, urls=None, sha256=SHA256):
    download = Download("words.txt", urls or (server.url(),), sha256)
    return fetch(download, folder=folder, manual="put words.txt there yourself")


def _files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".words.txt.lock"}


@pytest.mark.parametrize(
    "script",
    [
        ["fine"],
        ["cut", "fine"],
        ["cut", "cut", "cut", "fine"],
        ["stall", "fine"],
        ["503", "429", "fine"],
        ["other", "fine"],
        ["cut", "other", "fine"],
        ["length abc", "fine"],
        ["endless page", "fine"],
    ],
    ids="-".join,
)
@pytest.mark.parametrize("tag", ['"one"', 'W/"one"', ""], ids=["tag", "weak", "none"])
def test_fine_after_failures_is_the_whole_file(server, tmp_path, script, tag):
    server.script, server.tag = script.copy(), tag
    path = _fetch(server, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert _files(tmp_path / "new") == {"words.txt"}
    assert len(server.ranges) == len(script)


@pytest.mark.fault(38)
def test_cut_transfer_is_continued_where_the_server_says_it_is_the_same(server, tmp_path):
    server.script = ["cut", "fine"]
    _fetch(server, tmp_path)
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


@pytest.mark.fault(38)
@pytest.mark.parametrize("sha256", [SHA256, None], ids=["pinned", "unknown"])
@pytest.mark.parametrize("lie", ["another tag", "no tag", "another total", "another place", "416"])
def test_other_file_is_not_continued_nor_its_hash_recorded(server, tmp_path, lie, sha256):
    server.script = ["cut", lie, "fine"]
    assert _fetch(server, tmp_path, sha256=sha256).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-", None]
    if sha256 is None:
        assert (tmp_path / "words.txt.sha256").read_text().startswith(SHA256)


@pytest.mark.fault(38)
def test_file_of_another_address_is_not_continued(server, tmp_path):
    server.script = ["cut", "fine"]
    _fetch(server, tmp_path, urls=(server.url("one"), server.url("two")), sha256=None)
    assert server.ranges == [None, None]


@pytest.mark.fault(38)
def test_file_that_may_be_cut_unnoticed_is_not_recorded(server, tmp_path):
    server.script = ["endless"]
    with pytest.raises(StorageError, match="does not say how long"):
        _fetch(server, tmp_path, sha256=None)
    assert not _files(tmp_path)


@pytest.mark.parametrize(
    ("script", "requests", "reason"),
    [
        (["404"], 1, "HTTP 404 Not Found"),
        (["403"], 1, "HTTP 403 Forbidden"),
        (["500"], 4, "HTTP 500"),
        (["cut"], 4, "cut short after"),
        (["other"], 4, "its SHA-256 is "),
        (["stall"], 4, "nothing came for 0.5 s"),
        (["length abc"], 4, "a length of abc"),
        (["length -1"], 4, "a length of -1"),
        (["length 9e9"], 4, "a length of 999"),
        (["huge"], 1, "over 4,294,967,296"),
        (["endless"], 1, "goes on after 4,000,000 bytes"),
        (["drip"], 4, "are too few"),
        (["drip in the head"], 4, "are too few"),
        (["to ftp"], 1, "neither http nor https"),
        (["to file"], 1, "not allowed"),
        (["in circles"], 5, "HTTP 302"),
        (["no content"], 1, "HTTP 204"),
    ],
)
def test_lasting_failure_is_one_line_and_no_file(
    server, tmp_path, script, requests, reason, monkeypatch
):
    server.script, server.tag = script, ""
    if script == ["endless"]:
        monkeypatch.setattr(transfers, "MAX_BYTES", 4_000_000)
    if script[0].startswith("drip"):
        monkeypatch.setattr(transfers, "PERIOD", 0.3)
    with pytest.raises(StorageError) as caught:
        _fetch(server, tmp_path)
    line = str(caught.value)
    assert reason in line
    assert "words.txt cannot be downloaded" in line
    assert line.endswith("put words.txt there yourself")
    assert "\n" not in line
    assert len(line) < 500
    assert caught.value.exit_code == 5
    assert len(server.ranges) == requests
    assert not _files(tmp_path)


def test_other_addresses_are_tried(server, tmp_path):
    server.script = ["404", "fine"]
    urls = (server.url("old"), server.url("new"))
    assert _fetch(server, tmp_path, urls=urls).read_bytes() == CONTENT


def test_nobody_there_is_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(StorageError, match="Connection refused"):
        _fetch(server, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "words.txt"])
def test_other_schemes_are_refused(server, tmp_path, url):
    with pytest.raises(StorageError, match="only http and https"):
        _fetch(server, tmp_path, urls=(url,))
    assert not server.ranges


def test_first_download_is_recorded_and_later_ones_are_held_to_it(server, tmp_path):
    path = _fetch(server, tmp_path, sha256=None)
    assert (tmp_path / "words.txt.sha256").read_text() == f"{SHA256}  words.txt\n"
    assert _fetch(server, tmp_path, sha256=None) == path
    assert len(server.ranges) == 1
    path.unlink()
    server.script = ["other"]
    with pytest.raises(StorageError, match=f"not {SHA256[:12]}"):
        _fetch(server, tmp_path, sha256=None)
    assert not path.exists()


def test_damaged_file_is_named_and_kept(server, tmp_path):
    path = _fetch(server, tmp_path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(StorageError, match=r"words\.txt has the SHA-256 .*delete it"):
        _fetch(server, tmp_path)
    assert path.exists()


def test_file_put_there_by_hand_is_taken(server, tmp_path):
    (tmp_path / "words.txt").write_bytes(CONTENT)
    _fetch(server, tmp_path)
    assert not server.ranges


def test_two_processes_at_once_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch, args=(server, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.ranges) == 1


def _wait_for(condition):
    while not condition():
        time.sleep(0.01)


@pytest.mark.fault(32)
def test_what_a_killed_download_left_goes(server, tmp_path):
    server.script = ["drip"]
    process = multiprocessing.get_context("fork").Process(target=_fetch, args=(server, tmp_path))
    process.start()
    _wait_for(lambda: any(name.endswith(".partial") for name in _files(tmp_path)))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / "words.txt").write_bytes(CONTENT)  # by hand
    _fetch(server, tmp_path)
    assert _files(tmp_path) == {"words.txt"}


@pytest.mark.fault(32)
def test_what_a_running_download_has_stays(server, tmp_path):
    partial = tmp_path / ".others.txt.1234.partial"
    partial.touch()
    with locked(tmp_path / "others.txt"):
        _fetch(server, tmp_path)
        assert partial.exists()
    _fetch(server, tmp_path)
    assert not partial.exists()


@pytest.mark.fault(41)
@pytest.mark.parametrize("name", ["words.txt", "words.txt.sha256", ".words.txt.lock"])
def test_pipe_in_place_of_a_file_is_not_waited_for(server, tmp_path, name):
    os.mkfifo(tmp_path / name)
    if name == ".words.txt.lock":
        with pytest.raises(StorageError, match="is no file but a pipe or device; delete it"):
            _fetch(server, tmp_path, sha256=None)
    else:
        assert _fetch(server, tmp_path, sha256=None).read_bytes() == CONTENT
        assert (tmp_path / "words.txt.sha256").read_text() == f"{SHA256}  words.txt\n"


def test_folder_that_cannot_be_written_is_one_line(server):

    with pytest.raises(StorageError, match=r"/proc/self/x/words\.txt cannot be written"):
        _fetch(server, Path("/proc/self/x"))


def test_data_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path))
    assert data_folder("words") == tmp_path / "data" / "words"
    for name in ("FWLIGHT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match="set FWLIGHT_CACHE"):
        data_folder("words")
