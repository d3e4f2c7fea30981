"""What a text is read as: all tokens give their text back, and cost what a hand counts."""

import gzip
import json
import math

import lightning
import numpy as np
import pytest
import torch

from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, DataError
from tasks.lm import LanguageModelingDataModule
from tasks.text import encoding, tokens
from tasks.text.corpora import check_task
from train import main

KINDS = ("words", "chars", "bytes", "bpe", "FILE")
EXACT = KINDS[1:]
LINE = "The caf\u00e9 \u201copens\u201d at 9, \u4e16\u754c \U0001f600!  Two spaces\tand a tab."


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "CHUNK", 100)
    monkeypatch.setattr(encoding, "_CHUNK", 100)


@pytest.fixture
def text(tmp_path):
    """A text whose last line has no end; parts of the splits with their own bytes."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{LINE} {i}" if i % 3 else "" for i in range(300)), newline="")
    return path


@pytest.fixture
def tokenizer_json(text, tmp_path):
    data = read("bpe", text, vocab_size=300)
    path = tmp_path / "tokenizer.json"
    path.write_text(data.state_dict()["tokenizer"])
    return path


def read(kind, path, **options) -> LanguageModelingDataModule:
    options = {"batch_size": 2, "seq_len": 16, "min_count": 1, **options}
    data = LanguageModelingDataModule(data="text", path=path, tokenizer=kind, **options)
    data.setup()
    return data


def chosen(kind, request) -> str:
    return str(request.getfixturevalue("tokenizer_json")) if kind == "FILE" else kind


def splits(path) -> dict[str, str]:
    """The lines that start in the first 90 % of the bytes, and in the 5 % after them."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    size, start, parts = path.stat().st_size, path.stat().st_size - len(raw), ["", "", ""]
    for line in raw.splitlines(keepends=True):
        place = 0 if start == 3 else start
        part = 0 if place < int(size * 0.9) else 1 if place < int(size * 0.95) else 2
        parts[part] += line.decode().replace("\r\n", "\n")
        start += len(line)
    return dict(zip(("train", "valid", "test"), parts, strict=True))


@pytest.mark.parametrize("form", ["plain", "windows"])
@pytest.mark.parametrize("kind", EXACT)
def test_text_comes_back_whole(kind, form, text, request):
    kind = chosen(kind, request)
    if form == "windows":
        text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"\n", b"\r\n"))
    data = read(kind, text)
    for split, whole in splits(text).items():
        assert data.decode(data.streams[split].tolist()) == whole
    assert data.decode(data.encode(f"a\n{LINE}\n")) == f"a\n{LINE}\n"


def test_bytes_are_those_of_utf_8_and_characters_are_ranked(text):
    whole = splits(text)
    assert bytes(read("bytes", text).streams["test"].tolist()) == whole["test"].encode()
    data = read("chars", text)
    ranked = sorted({*whole["train"]}, key=lambda x: (-whole["train"].count(x), x))
    assert data.tokens.state_dict()["vocabulary"] == ["<unk>", *ranked]
    few = read("chars", text, max_vocab_size=5)
    assert few.tokens.state_dict()["vocabulary"] == ["<unk>", *ranked[:4]]
    assert few.streams["valid"].tolist() == [
        ranked.index(x) + 1 if x in ranked[:4] else 0 for x in whole["valid"]
    ]
    rare = read("chars", text, min_count=whole["train"].count("T"))
    assert {"T", "<unk>"} < {*rare.tokens.state_dict()["vocabulary"]} < {"<unk>", *ranked}


def test_byte_pairs_know_every_byte_and_have_the_size_asked_for(text):
    data = read("bpe", text, vocab_size=300)
    assert data.network_sizes == {"vocab_size": 300}
    assert len(data.streams["train"]) < 0.6 * len(splits(text)["train"].encode())
    odd = "".join(map(chr, [*range(1, 0x250, 7), 0x10FFFF])) + "<|endoftext|>"
    assert data.decode(data.encode(odd)) == odd
    assert read("bpe", text, vocab_size=256).network_sizes == {"vocab_size": 256}


@pytest.mark.parametrize("kind", KINDS)
def test_cached_is_as_in_memory(kind, text, request, monkeypatch):
    kind = chosen(kind, request)
    memory = read(kind, text)
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    first = read(kind, text)
    monkeypatch.setattr(encoding, "_build", lambda *_: pytest.fail("encoded again"))
    for data in (first, read(kind, text)):
        assert data.fingerprint == memory.fingerprint
        assert data.state_dict() == memory.state_dict()
        assert all(torch.equal(data.streams[s], memory.streams[s]) for s in memory.streams)
        assert data.bytes_per_target("val") == memory.bytes_per_target("val")


def test_other_tokenizer_of_the_same_name_is_another_vocabulary(text, tokenizer_json, monkeypatch):
    monkeypatch.setattr(encoding, "CACHED_FROM", 0)
    old = read(str(tokenizer_json), text)
    tokenizer_json.write_text(read("bpe", text, vocab_size=280).state_dict()["tokenizer"])
    new = read(str(tokenizer_json), text)
    assert len(new.tokens) == 280
    with pytest.raises(DataError, match="vocabulary is another"):
        new.load_state_dict(old.state_dict())


# Bits per byte


class Learnt(torch.nn.Module):
    """A bigram model; of zeros it is uniform."""

    state_size = positions = None

    def __init__(self, size: int, *, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(scale * torch.randn(size, size, generator=generator))

    def features(self, tokens):
        return self.table[tokens], None

    def nll(self, hidden, targets):
        losses = -hidden.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return losses.masked_fill(targets == IGNORE_INDEX, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_byte_are_what_a_hand_counts(kind, scale, text, request, tmp_path):
    data = read(chosen(kind, request), text, seq_len=7, eval="sliding" if scale else "segment")
    network = Learnt(len(data.tokens), scale=scale)
    module = LanguageModelingModule(network, optimizer=OptimizerConfig(), max_steps=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    logs = network.table.detach().double().log_softmax(-1)
    for name, split in (("val", "valid"), ("test", "test")):
        ids = data.streams[split].long()
        bits = -logs[ids[:-1], ids[1:]].sum().item() / math.log(2)
        if not scale:
            assert bits == pytest.approx((len(ids) - 1) * math.log2(len(data.tokens)))
        found = bits / len(splits(text)[split].encode())
        assert module.latest[f"{name}/bpb"] == pytest.approx(found, rel=1e-5)


# Checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_alone_reads_prompts_and_other_texts(kind, text, request, tmp_path):
    kind = chosen(kind, request)
    old = read(kind, text)
    state = old.state_dict()
    ids = old.encode("The caf\u00e9\nat 9")
    for gone in (text, tmp_path / "tokenizer.json"):
        gone.unlink(missing_ok=True)
    other = tmp_path / "other.txt"
    other.write_text("Another caf\u00e9.\n")
    new = LanguageModelingDataModule(data="text", test=other, tokenizer=kind, seq_len=16)
    new.load_state_dict(state)
    assert new.encode("The caf\u00e9\nat 9") == ids
    assert new.decode(ids) == old.decode(ids)
    assert new.network_sizes == old.network_sizes
    new.setup("test")
    assert new.bytes_per_target("test") == 15 / (len(new.streams["test"]) - 1)


@pytest.mark.parametrize(("old", "new"), [("words", "chars"), ("bpe", "words"), ("chars", "bytes")])
def test_checkpoint_of_other_tokens_is_refused(old, new, text):
    data = LanguageModelingDataModule(data="text", path=text, tokenizer=new)
    with pytest.raises(DataError, match=f"with task.tokenizer={old}, now it is .*={new}"):
        data.load_state_dict(read(old, text).state_dict())


def test_checkpoint_of_before_there_were_other_tokens_is_taken(text):
    data = read("words", text)
    state = data.state_dict()
    del state["tokens"]
    data.load_state_dict(state)


@pytest.mark.parametrize("vocabulary", [[], ["a"], ["<unk>", "ab"], ["<unk>", "a", "a"]])
def test_damaged_characters_are_refused(vocabulary):
    with pytest.raises(DataError, match="characters"):
        tokens.Characters(vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
def test_run_resumes_bit_for_bit_and_needs_no_text_afterwards(kind, text, request, tmp_path):
    kind = chosen(kind, request)
    arguments = ["size=tiny", "task.data=text", f"task.path={text}", f"task.tokenizer={kind}"]
    arguments += ["task.batch_size=2", "task.seq_len=16", "task.vocab_size=300", "callbacks=none"]
    arguments += ["trainer.max_steps=6", "trainer.val_check_interval=3", "logger=none"]
    arguments += ["callbacks.checkpoint.keep_every_n_train_steps=3"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main([*arguments, f"run_dir={whole}"]) == 0
    middle = whole / "checkpoints" / "step-000003.ckpt"
    assert main([*arguments, f"run_dir={again}", f"resume={middle}"]) == 0
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (whole, again)]
    assert {*rows[1]} < {*rows[0]}
    assert any("val/bpb" in row for row in rows[1])
    last = [torch.load(run / "checkpoints" / "last.ckpt") for run in (whole, again)]
    for name, value in last[0]["state_dict"].items():
        assert torch.equal(value, last[1]["state_dict"][name])
    text.rename(tmp_path / "moved.txt")
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    ckpt, told = f"ckpt={again / 'checkpoints' / 'last.ckpt'}", tmp_path / "told"
    prompt = ["action=generate", "prompt=The caf\u00e9", "generate.max_new_tokens=5"]
    assert main([ckpt, *prompt, f"output={told}"]) == 0
    assert told.read_text().startswith("The caf\u00e9")
    assert main([ckpt, "action=test", f"task.test={tmp_path / 'moved.txt'}", f"output={told}"]) == 0
    found = json.loads(told.read_text())
    bits = found["test/loss"] * found["test/tokens"] / math.log(2)
    n_bytes = len((tmp_path / "moved.txt").read_bytes())
    assert found["test/bpb"] == pytest.approx(bits / n_bytes, rel=1e-9)


# Bad input


def refused(tokenizer, text, **options) -> str:
    """What is said, the same before torch is imported and after."""
    task = dict.fromkeys(("train", "valid", "test")) | {"data": "text", "path": str(text)}
    with pytest.raises(DataError) as before:
        check_task({**task, "tokenizer": str(tokenizer)})
    with pytest.raises(DataError) as after:
        read(str(tokenizer), text, **options)
    assert str(before.value) == str(after.value)
    return str(after.value)


@pytest.mark.parametrize("content", ["cut", "packed", "text", "json", "empty", "no entry"])
def test_file_that_is_no_tokenizer_is_named(content, text, tokenizer_json):
    raw = tokenizer_json.read_bytes()
    tokenizer_json.write_bytes(
        {
            "cut": raw[: len(raw) // 2],
            "packed": gzip.compress(raw),
            "text": b"some words",
            "json": b'{"a": [1]}',
            "empty": b"",
            "no entry": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        }[content]
    )
    said = refused(tokenizer_json, text)
    assert str(tokenizer_json) in said
    assert "tokenizer.json" in said


def test_missing_tokenizer_is_told_with_the_choices(text, tmp_path):
    assert "does not exist; did you mean bytes?" in refused("byte", text)
    assert "is none of words, bytes, chars, bpe, and as a file" in refused("byte", text)
    assert "is a folder" in refused(tmp_path, text)


def test_too_small_a_vocabulary_is_named(text):
    with pytest.raises(DataError, match=r"task\.vocab_size=255 is too small.* at least 256"):
        read("bpe", text, vocab_size=255)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [5, 295])
def test_bytes_that_are_no_text_are_named_with_their_line(kind, place, text, request):
    kind = chosen(kind, request)
    lines = text.read_bytes().split(b"\n")
    lines[place] = b"b\xffd"
    text.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=f"{text}:{place + 1}: byte 0xff is not valid UTF-8"):
        read(kind, text)


@pytest.mark.parametrize("asked", [{"packing": True}, {"reset": "document"}])
def test_documents_are_of_words(asked):
    with pytest.raises(DataError, match=r"needs task\.tokenizer=words"):
        LanguageModelingDataModule(data="wikitext2", tokenizer="chars", **asked)


def test_tokenizer_with_padding_and_special_entries_reads_plain_text(text, tokenizer_json):
    from tokenizers import Tokenizer

    odd = Tokenizer.from_file(str(tokenizer_json))
    plain = read(str(tokenizer_json), text)
    odd.add_special_tokens(["<|endoftext|>"])
    odd.enable_padding(length=500)
    odd.enable_truncation(3)
    odd.save(str(tokenizer_json))
    data = read(str(tokenizer_json), text)
    assert np.array_equal(data.streams["test"], plain.streams["test"])
    assert data.encode("a <|endoftext|>") == plain.encode("a <|endoftext|>")
    assert len(data.tokens) == len(plain.tokens) + 1


def test_unknown_pieces_of_a_tokenizer_are_told(text, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "opens": 1, "at": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    data = read(str(tmp_path / "words.json"), text)
    tested = LanguageModelingDataModule(
        data="text", test=text, tokenizer=str(tmp_path / "words.json")
    )
    tested.load_state_dict(data.state_dict())
    tested.setup("test")
    unknown = (tested.streams["test"] == 0).double().mean()
    assert 0 < unknown < 1
    assert f"{unknown:.2%} of them <unk>" in tested.tested_text
