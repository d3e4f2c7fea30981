"""Random texts to everything that reads them, however they come: a result or one line."""

import gzip
import itertools
import os
import re
import threading
import unicodedata

import numpy as np
import pytest
from hypothesis import strategies as st

from fwlight.errors import DataError
from tasks.io import textfiles
from tasks.io.textfiles import read_pieces
from tasks.text import encoding
from tasks.text.bpe import SPECIAL, UNK_ID, encode_all, load_bpe, train_bpe
from tasks.text.corpora import check_task, open_corpus
from tasks.text.learning import Choice
from tasks.text.pair_files import write_split
from tasks.text.sentence_pairs import line_pairs
from tasks.text.tokenizer import EOS, UNK, detokenize, split_tokens, tokenize
from tasks.text.vocabulary import Vocabulary
from tests.fuzz.fuzzing import changes, fuzz

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
        for pieces in open_corpus(data, **task).splits.values():
            assert "\0" not in "".join(piece.whole for piece in pieces())

    fuzz(read, TEXT, request, short=200, full=20_000)


def test_sentence_pairs_are_read_or_refused(request, tmp_path):
    def read(contents):
        for name, content in zip("ab", contents, strict=True):
            (tmp_path / name).write_bytes(content)
        assert all(a and b for a, b in line_pairs(tmp_path / "a", tmp_path / "b"))

    fuzz(read, st.tuples(TEXT, TEXT), request, short=200, full=20_000)


def test_tokenizers_and_vocabularies_take_any_text(request):
    def read(text):
        words = tokenize(text)
        detokenize(words)
        load_bpe(text)

    fuzz(read, st.text(max_size=60), request, short=200, full=20_000)


def test_vocabularies_are_made_or_refused(request):
    words = st.lists(st.one_of(st.sampled_from(["<unk>", "<eos>", "a"]), st.text(max_size=3)))
    fuzz(Vocabulary, words, request, short=100, full=5_000)


# The same text in other forms


def members(content: bytes, cuts: list[int]) -> bytes:
    """A .gz file of several members, as `cat a.gz b.gz` makes it."""
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return b"".join(gzip.compress(content[a:b], mtime=0) for a, b in itertools.pairwise(edges))


PACKED = st.builds(members, TEXT, st.lists(st.integers(0, 120), max_size=2))


def outcome(file):
    """What becomes of a text in one file: its ids, or what is said of it."""
    try:
        return encoding.encode(open_corpus("text", path=file), Choice())
    except DataError as error:
        return str(error).replace(str(file), "FILE")


@pytest.mark.parametrize("cached_from", [0, 1 << 30])
def test_packed_and_piped_texts_are_the_plain_one(request, tmp_path, monkeypatch, cached_from):
    monkeypatch.setattr(encoding, "CACHED_FROM", cached_from)
    monkeypatch.setattr(textfiles, "_CHUNK_BYTES", 16)
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    number = itertools.count()

    def read(text_and_cuts):
        content, cuts = text_and_cuts
        plain, pipe = tmp_path / "plain", tmp_path / f"pipe{next(number)}"
        packed = tmp_path / "packed.gz"
        plain.write_bytes(content)
        packed.write_bytes(members(content, cuts))
        os.mkfifo(pipe)
        threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True).start()
        want = outcome(plain)
        for file in (packed, pipe):
            assert same(outcome(file), want), file
        pipe.unlink()

    def same(one, other):
        if isinstance(one, str) or isinstance(other, str):
            return without_names(one) == without_names(other)
        return one.tokens.hash == other.tokens.hash and one.fingerprint == other.fingerprint

    cuts = st.lists(st.integers(0, 120), max_size=2)
    # Nothing at all comes out of a pipe that nobody writes to, too.
    texts = TEXT.filter(bool).map(lambda text: text * 3)
    fuzz(read, st.tuples(texts, cuts), request, short=30, full=2_000)


def without_names(said):
    """A pipe is read from a copy of its name, in a folder of its own."""
    return re.sub(r"\S*/?(FILE|pipe\d+)", "FILE", said) if isinstance(said, str) else said


def test_damaged_packed_texts_are_read_or_refused(request, tmp_path):
    file = tmp_path / "text.gz"

    def read(content):
        file.write_bytes(content)
        size = textfiles.text_size(file)
        assert sum(len(piece.text.encode()) for piece in read_pieces(file)) <= size

    fuzz(read, changes(PACKED), request, short=200, full=20_000)


# Special entries, and more characters than a vocabulary has room for

MARKS = [*SPECIAL, EOS, "<mask>", "[CLS]", "<2de>", "<|endoftext|>", "<", ">", "</", "s>", "\u2581"]
MARKED = st.lists(
    st.one_of(st.sampled_from([*MARKS, " ", "\n", "a", "B.", "don't"]), st.text(max_size=3)),
    max_size=12,
).map("".join)


def test_special_entries_in_texts_are_text_to_words(request, file):
    def read(text):
        words = tokenize(text)
        assert not {*SPECIAL, EOS} & {*words}
        assert EOS not in split_tokens(text)
        assert [word for word in split_tokens(text) if word == UNK] == re.findall(
            r"(?<!\S)<unk>(?!\S)", text
        )
        file.write_text(f"{text}\n" * 40, encoding="utf-8", newline="")
        encoded = encoding.encode(open_corpus("text", path=file), Choice())
        lines = sum(piece.ends_line for piece in read_pieces(file))
        ids, (unk, eos) = np.concatenate([*encoded.streams.values()]), (0, 1)
        assert encoded.tokens.vocabulary.decode([unk, eos]) == [UNK, EOS]
        assert (ids == eos).sum() == lines
        assert unk not in encoded.streams["train"]

    texts = MARKED.filter(lambda text: "\0" not in text and text.isprintable() is not None)
    fuzz(read, texts, request, short=60, full=3_000)


def characters(first: int, n: int, step: int) -> str:
    """So many different characters, from somewhere among the 1,114,112."""
    return "".join(
        letter
        for i in range(n)
        if (letter := chr((first + i * step) % 0x110000)).isprintable()
        and unicodedata.normalize("NFC", letter) == letter
        and not unicodedata.combining(letter)
    )


LETTERS = st.builds(
    characters, st.integers(0, 0x110000), st.integers(0, 2500), st.sampled_from([1, 2, 7, 97])
)


def test_subwords_give_every_text_back_or_tell_what_is_unknown(request, tmp_path):
    def read(case):
        texts, letters, room = case
        lines = [*texts, *(letters[i : i + 50] for i in range(0, len(letters), 50))]
        bpe = train_bpe(lines, vocab_size=room)
        assert load_bpe(bpe.to_str()).to_str() == bpe.to_str()
        encoded = encode_all(bpe, lines)
        assert all(id >= UNK_ID for ids in encoded for id in ids)
        known = sum(UNK_ID not in ids for ids in encoded)
        alphabet = {*unicodedata.normalize("NFC", "".join(lines))} | {"\u2581"}
        assert len(alphabet) > room - len(SPECIAL) or known == len(lines)
        for line, ids in zip(lines, encoded, strict=True):
            if UNK_ID not in ids:
                want = unicodedata.normalize("NFC", line).replace("\u2581", " ")
                assert bpe.decode(ids).split() == want.split()
        pairs = [(line, line) for line in lines]
        (tmp_path / "pairs").mkdir(exist_ok=True)
        notes = write_split(tmp_path / "pairs", "train", pairs, tokenizer=bpe)
        assert any("<unk>" in note for note in notes) == (known < len(lines))

    texts = st.lists(MARKED, min_size=1, max_size=4)
    rooms = st.sampled_from([100, 500, 4000])
    fuzz(read, st.tuples(texts, LETTERS, rooms), request, short=40, full=2_000)
