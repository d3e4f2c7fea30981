"""Random input to everything that reads: an error of one line, or a result; never anything else.

A part of it is in make test; pytest tests/fuzz --full runs all of it.
"""

import io
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.composition import compose_config
from cli.overrides import groups
from cli.stored import leaves
from fwlight.errors import CheckpointError, ConfigError, DataError, FwlightError
from fwlight.run.checkpoint_io import load_checkpoint
from tasks.io import textfiles
from tasks.io.archives import unpack
from tasks.io.textfiles import read_pieces
from tasks.text.bpe import load_bpe
from tasks.text.corpora import check_task, open_corpus
from tasks.text.parallel import line_pairs
from tasks.text.tokenizer import detokenize, tokenize
from tasks.text.vocabulary import Vocabulary
from tests.faults.processes import ROOT
from train import exit_code_and_line

SECONDS, MEGABYTES = 5.0, 600


def assert_is_one_line(error):
    """What the user gets to see, whatever is quoted in it."""
    assert isinstance(error, FwlightError)
    code, line = exit_code_and_line(error)
    assert code == error.exit_code
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1


def fuzz(read, inputs, request, *, short, full, errors=(DataError,)):
    """Call `read` with so many inputs: it returns, or raises one of `errors` with one line."""
    n, seen, slowest = full if request.config.getoption("--full") else short, 0, 0.0

    def check(value):
        nonlocal seen, slowest
        seen += 1
        began = time.monotonic()
        try:
            read(value)
        except errors as error:
            assert_is_one_line(error)
        slowest = max(slowest, time.monotonic() - began)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(inputs)(check)
    )()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert seen >= n
    assert slowest < SECONDS
    assert (after - before) / 1024 < MEGABYTES


WORDS = [b"word ", b"w", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\0", b"\xff", b" = ", b"<unk> "]
WORDS += ["\u00e9 ".encode(), b"\t", b"@-@ ", b"\xe2\x80", b"x" * 40, "\u2028".encode()]
TEXT = st.one_of(
    st.binary(max_size=120),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join),
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def test_text_files_are_read_or_refused(request, file, monkeypatch):
    monkeypatch.setattr(textfiles, "_CHUNK_BYTES", 16)

    def read(content):
        file.write_bytes(content)
        text = "".join(piece.text for piece in read_pieces(file))
        assert "\0" not in text
        assert len(text.encode()) <= len(content)

    fuzz(read, TEXT, request, short=700, full=50_000)


@pytest.mark.parametrize("data", ["text", "wikitext"])
def test_corpora_are_read_or_refused(request, file, data):
    def read(content):
        file.write_bytes(content)
        names = ("path",) if data == "text" else ("train", "valid", "test")
        task = dict.fromkeys(("path", "train", "valid", "test")) | dict.fromkeys(names, str(file))
        check_task({"data": data, **task})
        for words in open_corpus(data, **task).splits.values():
            assert all(word for run in words() for word in run)

    fuzz(read, TEXT, request, short=200, full=20_000)


def test_sentence_pairs_are_read_or_refused(request, tmp_path):
    def read(contents):
        for name, content in zip("ab", contents, strict=True):
            (tmp_path / name).write_bytes(content)
        assert all(a and b for a, b in line_pairs(tmp_path / "a", tmp_path / "b"))

    fuzz(read, st.tuples(TEXT, TEXT), request, short=200, full=20_000)


def archive(form, names, contents):
    buffer = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in zip(names, contents, strict=False):
                made.writestr(name.replace("\0", "") or "x", content)
    else:
        with tarfile.open(fileobj=buffer, mode=form) as made:
            for name, content in zip(names, contents, strict=False):
                member = tarfile.TarInfo(name.replace("\0", "") or "x")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PATHS = st.one_of(
    st.text("ab./\\:", min_size=1, max_size=8),
    st.sampled_from(["../x", "/tmp/fwlight-fuzz", "a/../../x", "a", "a/b"]),
)
ARCHIVES = st.builds(
    archive,
    st.sampled_from(["zip", "w", "w:gz", "w:xz"]),
    st.lists(PATHS, max_size=3),
    st.lists(st.binary(max_size=50), max_size=3),
)


def spoilt(content: bytes, seed: int, n: int) -> bytes:
    """Change, remove or insert a few bytes."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(n):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del changed[place : place + chance.randrange(1, 9)]
        elif kind == 2:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        else:
            changed[place : place + 1] = bytes(
                b ^ 1 << chance.randrange(8) for b in changed[place : place + 1]
            )
    return bytes(changed)


def changes(contents, *, most=3):
    return st.builds(spoilt, contents, st.integers(0, 2**32), st.integers(0, most))


def test_archives_are_unpacked_inside_or_refused(request, tmp_path):
    number = 0

    def read(content):
        nonlocal number
        number += 1
        path, folder = tmp_path / "archive.gz", tmp_path / "inner" / str(number)
        path.write_bytes(content)
        folder.mkdir(parents=True)
        try:
            unpack(path, folder, max_bytes=10_000)
        finally:
            assert {entry.name for entry in tmp_path.iterdir()} == {"archive.gz", "inner"}
            assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 10_000
            shutil.rmtree(folder)

    fuzz(
        read, st.one_of(changes(ARCHIVES), st.binary(max_size=200)), request, short=200, full=15_000
    )


def test_tokenizers_and_vocabularies_take_any_text(request):
    def read(text):
        words = tokenize(text)
        detokenize(words)
        load_bpe(text)

    fuzz(read, st.text(max_size=60), request, short=200, full=20_000)


def test_vocabularies_are_made_or_refused(request):
    words = st.lists(st.one_of(st.sampled_from(["<unk>", "<eos>", "a"]), st.text(max_size=3)))
    fuzz(Vocabulary, words, request, short=100, full=5_000)


# Checkpoints


def checkpoint() -> dict:
    return {
        "state_dict": {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)},
        "global_step": 7,
        "callbacks": {"a": {"best": [1, 2.5, None, "x"]}},
        "fwlight": {"choices": {"model": "linear"}, "overrides": ["seed=2"], "config": {}},
    }


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    return buffer.getvalue()


def repacked(seed: int, n: int) -> bytes:
    """A whole archive, check sums and all, whose pickle is not what was written."""
    buffer = io.BytesIO()
    new = torch._C.PyTorchFileWriter(buffer)
    with zipfile.ZipFile(io.BytesIO(saved())) as old:
        for path in old.namelist():
            content, name = old.read(path), path.partition("/")[2]
            if name not in ("version", ".data/serialization_id"):  # which the writer adds itself
                content = spoilt(content, seed, n) if name.endswith(".pkl") else content
                new.write_record(name, content, len(content))
    new.write_end_of_file()
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["bytes", "changed", "repacked"])
def test_checkpoints_are_loaded_or_refused(request, tmp_path, form):
    path, whole = tmp_path / "x.ckpt", saved()
    contents = {
        "bytes": st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(b"PK\3\4".__add__)),
        "changed": changes(st.just(whole), most=4),
        "repacked": st.builds(repacked, st.integers(0, 2**32), st.integers(0, 4)),
    }[form]

    def read(content):
        path.write_bytes(content)
        loaded = load_checkpoint(path)
        assert isinstance(loaded["state_dict"], dict)
        assert isinstance(loaded.get("global_step", 0), int)

    fuzz(read, contents, request, short=150, full=15_000, errors=(CheckpointError,))


# Configurations

VALUES = ("0", "-1", "1", "7", "1e3", "nan", "inf", "null", "true", "[]", "[1,2]", "{a:1}", "abc")
VALUES += ("''", "'", "${seed}", "a=b", "a,b", "1_000", "0x10", "~", "\u00e9", " ", "\\", "???")
VALUES += ("9" * 30, "[[1]]", "range(1,3)", "choice(1,2)", "/dev/null", "x" * 500)


def arguments() -> st.SearchStrategy[list[str]]:
    """Keys as they are, slightly wrong or made up, with options, values or anything."""
    config = compose_config([]).config
    keys = [*dict(leaves(config)), *groups(), "network.d_model", "_target_", "task._target_"]
    options = [option for names in groups().values() for option in names]
    key = st.one_of(
        st.sampled_from(keys),
        st.builds(
            lambda k, i, c: k[: i % len(k)] + c + k[i % len(k) :],
            st.sampled_from(keys),
            st.integers(0, 99),
            st.sampled_from(list("._/x+~@-")),
        ),
        st.text(max_size=12),
    )
    value = st.one_of(
        st.sampled_from([*VALUES, *options]),
        st.text(max_size=12),
        st.integers().map(str),
        st.floats().map(str),
    )
    one = st.one_of(st.builds("{}={}".format, key, value), st.text(max_size=20))
    return st.lists(one, min_size=1, max_size=4)


def test_configurations_are_composed_or_refused(request):
    fuzz(compose_config, arguments(), request, short=60, full=5_000, errors=(ConfigError,))


def test_bad_command_lines_are_one_line_each_and_soon(request, tmp_path):
    """As real processes; only such as are bad, the others would train."""
    n = 200 if request.config.getoption("--full") else 3
    bad: list[list[str]] = []

    def collect(words):
        if len(bad) < n and not any("\0" in word for word in words):
            try:
                compose_config(words)
            except ConfigError:
                bad.append([w.encode("utf-8", "replace").decode() for w in words])

    settings(
        max_examples=20 * n, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )(given(arguments())(collect))()
    assert len(bad) == n
    for words in bad:
        if {"-h", "--help", "--cfg", "-m"} & {*words}:
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *words],
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 2, (words, done.stderr)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, (words, lines)
        assert lines[0].startswith("error: ")
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert not [*tmp_path.iterdir()]
