import gzip
import os
import threading
import tracemalloc

import pytest

from fwlight import pipes
from fwlight.types import DataError
from tasks.io import textfiles
from tasks.io.textfiles import existing_file, read_pieces, text_size


def _write(tmp_path, content: bytes):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [b"", b"end"])
def test_lines_come_without_marks_and_ends(tmp_path, end, mark, last):
    path = _write(tmp_path, mark + "Kutúzov".encode() + end + end + b"two words" + end + last)
    expected = ["Kutúzov", "", "two words", *(["end"] if last else [])]
    pieces = list(read_pieces(path))
    assert [piece.text for piece in pieces] == expected
    assert all(piece.ends_line for piece in pieces)


def test_line_start_is_the_byte_offset(tmp_path):
    content = b"\xef\xbb\xbfone\r\n\ntwo\nthree"
    starts = [piece.line_start for piece in read_pieces(_write(tmp_path, content))]
    assert starts == [0, content.index(b"\ntwo"), content.index(b"two"), content.index(b"three")]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
@pytest.mark.parametrize("chunk", range(4, 12))
def test_lines_that_returns_end_are_those_of_line_feeds(tmp_path, monkeypatch, chunk, end):
    monkeypatch.setattr(textfiles, "_CHUNK_BYTES", chunk)
    text = "aé bc d e f\n\nx y z \nab\ncd ef g"
    pieces = list(read_pieces(_write(tmp_path, text.replace("\n", end).encode())))
    joined = "".join(piece.text + "\n" * piece.ends_line for piece in pieces)
    assert joined == text + "\n"
    assert sorted({piece.line_start for piece in pieces}) == [
        len("\n".join(text.split("\n")[:i]).replace("\n", end).encode()) + len(end) * (i > 0)
        for i in range(5)
    ]


def test_a_return_within_a_line_of_line_feeds_ends_none(tmp_path):
    pieces = list(read_pieces(_write(tmp_path, b"one\rtwo\nthree\n")))
    assert [piece.text for piece in pieces] == ["one\rtwo", "three"]


@pytest.mark.fault(45)
@pytest.mark.parametrize("members", [1, 3])
def test_size_of_a_packed_text_is_that_of_the_text(tmp_path, members):
    text = b"some words\n" * 1000
    plain, packed = _write(tmp_path, text * members), tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(text) * members)
    assert text_size(packed) == text_size(plain) == members * len(text)
    packed.write_bytes(gzip.compress(text)[:-9])
    with pytest.raises(DataError, match=r"is no whole \.gz file"):
        text_size(packed)


@pytest.mark.parametrize("tail", ["", "\nnext\n"])
@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 40])
def test_long_line_is_cut_between_words(tmp_path, monkeypatch, length, tail):
    monkeypatch.setattr(textfiles, "_CHUNK_BYTES", 8)
    line = ("aé bc d " * length)[:length]
    pieces = list(read_pieces(_write(tmp_path, (line + tail).encode())))
    assert "".join(piece.text for piece in pieces) == line + tail.replace("\n", "")
    assert sum(piece.ends_line for piece in pieces) == 1 + bool(tail)
    assert all(not piece.text or piece.text[-1] == " " for piece in pieces if not piece.ends_line)
    assert [piece.line_start for piece in pieces if piece.text in line] == [0] * len(
        [piece for piece in pieces if piece.text in line]
    )


def test_line_of_50_mb_needs_bounded_memory(tmp_path):
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(50):
            file.write(b"word and\xc3\xa9 " * 100_000)
    tracemalloc.start()
    n = sum(len(piece.text) for piece in read_pieces(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 50 * 100_000 * 10
    assert peak < 12 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nb\xffad\n", ":2: byte 0xff is not valid UTF-8"),
        (b"good\ngood\nb\0d\n", ":3: a NUL byte"),
        (b"a\n" + b"x" * (3 << 20), ":2: over 1 MiB without a space"),
        ("text".encode("utf-16"), ":1: a NUL byte; this is no UTF-8 text"),
    ],
)
def test_bad_content_is_named_with_file_and_line(tmp_path, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        list(read_pieces(path))
    assert f"{path}{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        existing_file(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="is a folder"):
        existing_file(tmp_path)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        existing_file(tmp_path / ("x" * 3000))


def _into(pipe, content):
    thread = threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    thread.start()
    return thread


@pytest.mark.fault(41)
@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_pipe_is_read_once_and_then_as_often_as_needed(tmp_path, name):
    pipe, content = tmp_path / name, b"one two\n" * 100_000
    os.mkfifo(pipe)
    writer = _into(pipe, gzip.compress(content) if name == "text.gz" else content)
    file = existing_file(pipe)
    writer.join()
    assert file.is_file()
    assert existing_file(pipe) == file
    for _ in range(2):
        assert sum(len(piece.text) + 1 for piece in read_pieces(file)) == len(content)


@pytest.mark.fault(41)
def test_pipe_that_nobody_writes_to_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes, "WRITER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "text")
    with pytest.raises(DataError, match=r"text is a pipe that nobody writes to"):
        existing_file(tmp_path / "text")


@pytest.mark.fault(41)
def test_device_is_named():
    with pytest.raises(DataError, match="/dev/null is a device or socket"):
        existing_file("/dev/null")


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_a_file_are_the_whole_file(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(textfiles, "_CHUNK_BYTES", 16)
    content = "a caf\u00e9 \u4e16\n\u754c\U0001f600 \u00e9\n\nend".encode()
    path = tmp_path / ("text.gz" if packed else "text")
    path.write_bytes(gzip.compress(content) if packed else content)
    for cut in range(len(content) + 1):
        parts = [
            "".join(piece.whole for piece in read_pieces(path, **edges))
            for edges in ({"end": cut}, {"first": cut})
        ]
        assert "".join(parts).encode() == content
        assert len(parts[0].encode()) in range(cut, cut + 4)


def test_bad_byte_of_a_part_is_told_with_where_the_part_begins(tmp_path):
    path = _write(tmp_path, b"one\ntwo\nb\xffd\n")
    with pytest.raises(DataError, match=r"text\.txt from byte 4:2: byte 0xff"):
        list(read_pieces(path, first=4, end=12))
