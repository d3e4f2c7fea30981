"""Encoding in memory and into the cache, and the public texts, from a server on this machine."""

import gzip
import hashlib
import io
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from fwlight.errors import StorageError
from tasks.io.downloads import Download
from tasks.lm import LanguageModelingDataModule
from tasks.text import encoding, public_texts, tokens

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoding, "_CHUNK", 64)
    monkeypatch.setattr(tokens, "CHUNK", 64)
    return tmp_path / "cache"


@pytest.fixture
def wiki(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for split, lines in zip(SPLITS, (200, 20, 30), strict=True):
        ids = torch.randint(400, (lines, 7), generator=generator).square() // 500
        text = "\n".join(" ".join(f"w{i}" for i in row) for row in ids.tolist())
        (folder / f"wiki.{split}.tokens").write_text(f" = A = \n\n{text} <unk>\n")
    return folder


def _setup(**options) -> LanguageModelingDataModule:
    data = LanguageModelingDataModule(**{"data": "wikitext103", "seq_len": 8, **options})
    data.setup()
    return data


def _equal(one, other) -> bool:
    return one.vocabulary.words == other.vocabulary.words and all(
        torch.equal(one.streams[split], other.streams[split]) for split in SPLITS
    )


@pytest.mark.parametrize("limits", [{}, {"min_count": 3}, {"max_vocab_size": 20}])
def test_ids_are_those_of_a_plain_count(wiki, limits):
    data = _setup(path=wiki, **limits)
    text = {split: (wiki / f"wiki.{split}.tokens").read_text() for split in SPLITS}
    words = {
        split: [word for line in lines.splitlines() for word in [*line.split(), "<eos>"]]
        for split, lines in text.items()
    }
    ranked = sorted(Counter(words["train"]).items(), key=lambda item: (-item[1], item[0]))
    kept = [w for w, n in ranked if n >= limits.get("min_count", 1) and w[0] != "<"]
    known = ["<unk>", "<eos>", *kept][: limits.get("max_vocab_size")]
    assert data.vocabulary.words == known
    digest = hashlib.sha256()
    for split in SPLITS:
        ids = [known.index(w) if w in known else 0 for w in words[split]]
        assert data.streams[split].tolist() == ids
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(b"".join(i.to_bytes(4, "little") for i in ids))
    assert data.fingerprint == digest.hexdigest()


@pytest.mark.parametrize("limits", [{}, {"min_count": 3}, {"max_vocab_size": 20}])
def test_cached_text_is_that_of_memory_and_is_encoded_once(wiki, monkeypatch, cache, limits):
    memory = _setup(path=wiki, **limits)
    assert not cache.exists()
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    first = _setup(path=wiki, **limits)
    assert _equal(first, memory)
    assert first.fingerprint == memory.fingerprint
    monkeypatch.setattr(encoding, "_build", lambda *_, **__: pytest.fail("encoded again"))
    again = _setup(path=wiki, **limits)
    assert _equal(again, memory)
    assert again.fingerprint == memory.fingerprint
    batches = [list(data.train_dataloader()) for data in (memory, again)]
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(*batches, strict=True))


def test_other_text_or_limits_are_encoded_anew(wiki, monkeypatch):
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    first = _setup(path=wiki)
    assert len(_setup(path=wiki, min_count=5).vocabulary) < len(first.vocabulary)
    path = wiki / "wiki.valid.tokens"
    path.write_text(path.read_text().replace("w", "v"))
    assert not torch.equal(_setup(path=wiki).streams["valid"], first.streams["valid"])


@pytest.mark.fault(45)
def test_packed_text_is_split_counted_and_cached_as_the_plain_one(tmp_path, monkeypatch, cache):
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"line {i} says word{i % 97} once more" for i in range(3000)))
    packed = tmp_path / "book.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(encoding, "CACHED_FROM", file.stat().st_size)
    read = [_setup(data="text", path=path, min_count=1) for path in (file, packed)]
    assert _equal(*read)
    assert read[0].fingerprint == read[1].fingerprint
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 2


@pytest.mark.fault(45)
def test_packed_book_is_split_as_the_plain_one(shared_dir, tmp_path):
    file = shared_dir / "data" / "war_and_peace.txt"
    packed = tmp_path / "w.gz"
    packed.write_bytes(gzip.compress(file.read_bytes(), 1))
    plain, unpacked = (_setup(data="text", path=path) for path in (file, packed))
    assert _equal(plain, unpacked)
    assert sum(map(len, unpacked.streams.values())) > 600_000


@pytest.mark.fault(32)
def test_failed_encoding_leaves_no_cache(wiki, monkeypatch, cache):
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    (wiki / "wiki.test.tokens").write_bytes(b"good\nb\xffd\n")
    with pytest.raises(ValueError, match="byte 0xff"):
        _setup(path=wiki)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


WHOLE = "one line of caf\u00e9 and nine lives " * 30
WHOLE = f"{WHOLE}\n{WHOLE}".encode()
EDGES = {"train": (0, 1000), "valid": (1000, 1500), "test": (1500, len(WHOLE))}
"""Within a word, and within the line."""
ONE_FILE = {
    name: public_texts.OneFile(file, EDGES)
    for name, file in (("text8", "text8"), ("enwik8", "enwik8"), ("shakespeare", "input.txt"))
}


@pytest.fixture
def served(wiki, monkeypatch):
    """All public texts on a server, small; the requests are recorded."""
    files, asked = {}, []
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in wiki.iterdir():
            file.write(path, f"wikitext-2/{path.name}")
    files["/wikitext-2-v1.zip"] = archive.getvalue()
    for data, one in ONE_FILE.items():
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(one.name, WHOLE)
        files[f"/{data}.zip"] = archive.getvalue()
        files[f"/{one.name}"] = WHOLE
        monkeypatch.setitem(public_texts.ONE_FILE, data, one)
    for split in SPLITS:
        files[f"/ptb.{split}.txt"] = (wiki / f"wiki.{split}.tokens").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = files.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    host = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(
        public_texts.ARCHIVES,
        "wikitext2",
        Download("wikitext-2-v1.zip", (f"{host}/wikitext-2-v1.zip",)),
    )
    monkeypatch.setitem(
        public_texts.ARCHIVES, "wikitext103", Download("gone.zip", (f"{host}/gone.zip",))
    )
    for data in ("text8", "enwik8"):
        archived = Download(f"{data}.zip", (f"{host}/{data}.zip",))
        monkeypatch.setitem(public_texts.ARCHIVES, data, archived)
    plain = Download("input.txt", (f"{host}/input.txt",))
    monkeypatch.setitem(public_texts.FILES, "shakespeare", plain)
    monkeypatch.setattr(public_texts, "_PTB", host)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("data", "requests"), [("wikitext2", 1), ("ptb", 3)])
def test_public_texts_are_downloaded_once(wiki, served, data, requests):
    downloaded = _setup(data=data)
    assert _equal(downloaded, _setup(data="wikitext", path=wiki))
    assert _equal(_setup(data=data), downloaded)
    assert len(served) == requests


def test_nothing_is_downloaded_where_a_folder_is_given(wiki, served):
    _setup(data="wikitext2", path=wiki)
    LanguageModelingDataModule(data="wikitext2")  # before setup()
    assert not served


def test_without_the_file_the_manual_steps_are_told(served):
    with pytest.raises(StorageError) as caught:
        _setup(data="wikitext103")
    assert caught.value.exit_code == 5
    line = str(caught.value)
    assert "HTTP 404" in line
    assert "task.data=wikitext103 task.path=FOLDER" in line
    assert "wiki.train.tokens" in line
    assert "\n" not in line


@pytest.mark.parametrize("data", ONE_FILE)
def test_texts_of_one_file_are_split_at_their_bytes(data, served, tmp_path, monkeypatch):
    read = _setup(data=data, tokenizer="bytes")
    for split, (first, end) in EDGES.items():
        assert bytes(read.streams[split].tolist()) == WHOLE[first:end]
    (tmp_path / ONE_FILE[data].name).write_bytes(WHOLE)
    given = _setup(data=data, tokenizer="bytes", path=tmp_path)
    assert given.fingerprint == read.fingerprint
    assert len(served) == 1
    words = _setup(data=data, min_count=1, path=tmp_path)
    first = words.vocabulary.decode(words.streams["train"].tolist()[:4])
    assert first == ["one", "line", "of", "caf\u00e9"]
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    cached = _setup(data=data, tokenizer="bytes")
    assert cached.fingerprint == read.fingerprint
    other = tmp_path / "other.txt"
    other.write_text("others\n")
    tested = _setup(data=data, tokenizer="bytes", test=other)
    assert bytes(tested.streams["test"].tolist()) == b"others\n"
    assert torch.equal(tested.streams["valid"], read.streams["valid"])
    named = _setup(data=data, tokenizer="bytes", valid=other)  # of the same files, in another order
    assert not torch.equal(named.streams["valid"], read.streams["valid"])


def test_text_that_is_not_the_published_one_is_told(served, tmp_path):
    (tmp_path / "text8").write_bytes(WHOLE[:-1])
    with pytest.raises(ValueError, match=rf"text8 has {len(WHOLE) - 1:,} bytes; .* {len(WHOLE):,}"):
        _setup(data="text8", path=tmp_path)
    with pytest.raises(ValueError, match=r"needs one with enwik8"):
        _setup(data="enwik8", path=tmp_path / "nowhere")
    assert not served


def test_published_splits():
    sizes = {
        data: [end - first for first, end in one.splits.values()]
        for data, one in public_texts.ONE_FILE.items()
    }
    assert sizes["text8"] == sizes["enwik8"] == [90_000_000, 5_000_000, 5_000_000]
    # As of nanoGPT: the first int(0.9 n) of n characters, and the others.
    assert sizes["shakespeare"] == [int(0.9 * 1_115_394), 111_540, 111_540]
