import os
import threading

import pytest
import torch

from fwlight.types import DataError
from tasks.lm import LanguageModelingDataModule
from tasks.text.corpora import check_task

TRAIN = "the cat sat .\n\nthe dog sat .\nthe end\n"
VALID = "the bird sat .\n"
TEST = "a cat\n\n"


@pytest.fixture
def wiki(tmp_path):
    for split, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    return tmp_path


def _data(**arguments) -> LanguageModelingDataModule:
    data = LanguageModelingDataModule(**{"batch_size": 2, "seq_len": 4, **arguments})
    data.setup()
    return data


def _words(data, split) -> list[str]:
    return data.vocabulary.decode(data.streams[split].tolist())


def test_wikitext_ends_every_line_with_eos(wiki):
    data = _data(data="wikitext", path=wiki)
    assert " ".join(_words(data, "train")) == (
        "the cat sat . <eos> <eos> the dog sat . <eos> the end <eos>"
    )
    assert _words(data, "test") == ["<unk>", "cat", "<eos>", "<eos>"]


def test_vocabulary_is_of_the_training_split_alone(wiki):
    data = _data(data="wikitext", path=wiki)
    assert data.vocabulary.words == ["<unk>", "<eos>", "the", ".", "sat", "cat", "dog", "end"]
    assert _words(data, "valid") == ["the", "<unk>", "sat", ".", "<eos>"]


def test_wikitext_files_can_be_named_one_by_one(wiki):
    data = _data(data="wikitext", path=wiki, train=wiki / "wiki.valid.tokens")
    assert "bird" in data.vocabulary.ids
    files = {split: str(wiki / f"wiki.{split}.tokens") for split in ("train", "valid", "test")}
    named = _data(data="wikitext", **files)
    assert named.fingerprint == _data(data="wikitext", path=str(wiki)).fingerprint


def test_rare_words_become_unk(wiki):
    data = _data(data="wikitext", path=wiki, min_count=2)
    assert data.vocabulary.words == ["<unk>", "<eos>", "the", ".", "sat"]
    assert len(_data(data="wikitext", path=wiki, max_vocab_size=4).vocabulary) == 4


def test_text_is_split_by_position_at_line_ends(tmp_path):
    lines = [f"line {i} of a text." for i in range(200)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    data = _data(data="text", path=path, min_count=1)
    counts = [_words(data, split).count("<eos>") for split in ("train", "valid", "test")]
    assert sum(counts) == 200
    assert counts == pytest.approx([180, 10, 10], abs=2)
    assert _words(data, "train")[:7] == ["line", "0", "of", "a", "text", ".", "<eos>"]


def test_text_of_three_files_equals_wikitext_where_words_are_spaced(wiki):
    files = {split: wiki / f"wiki.{split}.tokens" for split in ("train", "valid", "test")}
    text = _data(data="text", min_count=1, **files)
    assert text.fingerprint == _data(data="wikitext", path=wiki).fingerprint


def test_setup_is_idempotent_and_tells_the_model(wiki):
    data = _data(data="wikitext", path=wiki)
    streams = dict(data.streams)
    data.setup("fit")
    assert all(data.streams[split] is streams[split] for split in streams)
    assert data.network_sizes == {"vocab_size": 8}


def test_encode_and_decode_of_a_prompt(wiki):
    data = _data(data="wikitext", path=wiki)
    ids = data.encode("the cat.\nthe end")
    assert data.vocabulary.decode(ids) == ["the", "cat", ".", "<eos>", "the", "end"]
    assert data.decode(ids) == "the cat.\nthe end"
    assert data.encode("") == []


def test_loaders_need_no_trainer_and_evaluate_every_target(wiki):
    data = _data(data="wikitext", path=wiki, eval_batch_size=3)
    assert [tuple(b.inputs.shape) for b in data.train_dataloader()] == [(2, 4), (2, 2)]
    for split, loader in (("valid", data.val_dataloader()), ("test", data.test_dataloader())):
        targets = torch.cat([b.targets.flatten() for b in loader])
        assert (targets >= 0).sum() == len(data.streams[split]) - 1


@pytest.mark.parametrize("token", ["<unk>", "<eos>"])
def test_special_words_in_a_text_are_text(tmp_path, token):
    path = tmp_path / "text.txt"
    path.write_text(f"the {token} dog\n" * 40)
    text = _data(data="text", path=path, min_count=1)
    words = ["the", "<", token[1:-1], ">", "dog", "<eos>"]
    assert _words(text, "train")[:7] == [*words, "the"]
    assert text.vocabulary.decode(text.encode(f"the {token} dog\n")) == words


def test_of_the_special_words_token_files_have_only_unk(wiki):
    (wiki / "wiki.train.tokens").write_text("the <unk> < eos > sat\nthe <eos> <s> sat\n")
    data = _data(data="wikitext", path=wiki)
    first, second = "the <unk> < eos > sat <eos>", "the < eos > <s> sat <eos>"
    assert " ".join(_words(data, "train")) == f"{first} {second}"
    assert data.streams["train"].tolist().count(data.vocabulary.unk_id) == 1
    assert data.encode("the <eos> <unk>\n") == data.encode("the < eos > <unk>\n")
    assert data.vocabulary.decode(data.encode("the <unk>\n")) == ["the", "<unk>", "<eos>"]


def test_prompts_are_beginnings_of_known_lines_of_the_validation_split(wiki):
    (wiki / "wiki.valid.tokens").write_text(
        "the cat sat\nthe bird sat\nend\n\ncat the dog .\nthe dog sat .\nthe\n"
    )
    data = _data(data="wikitext", path=wiki)
    decoded = [" ".join(data.vocabulary.decode(ids)) for ids in data.prompts(3)]
    assert decoded == ["the cat sat", "cat the dog", "the dog sat"]
    (wiki / "wiki.valid.tokens").write_text("a\nb\n")
    assert _data(data="wikitext", path=wiki).prompts(2) == [[0, 1, 0]] * 2


# Checkpoints


@pytest.mark.parametrize("stage", ["test", "diagnose"])
def test_checkpoint_is_tested_on_any_text_and_says_which(wiki, stage):
    old = _data(data="wikitext", path=wiki)
    state = old.state_dict()
    for split in ("train", "valid"):
        (wiki / f"wiki.{split}.tokens").unlink()

    def loaded(**changes):
        data = LanguageModelingDataModule(**{"data": "wikitext", "path": wiki, **changes})
        data.load_state_dict(state)
        data.setup(stage)
        data.load_state_dict(state)
        return data

    own, test = loaded(), wiki / "wiki.test.tokens"
    assert torch.equal(own.streams["test"], old.streams["test"])
    assert own.tested_text == (
        f"{test}, test split, 4 tokens, 25.00% of them <unk>; the checkpoint's own"
    )
    (wiki / "other").write_text("the dog flies\n")
    other = loaded(test=str(wiki / "other"))
    assert _words(other, "test") == ["the", "dog", "<unk>", "<eos>"]
    assert other.tested_text.endswith("25.00% of them <unk>; not the checkpoint's own")
    valid = loaded(valid=str(wiki / "other"), test_split="valid")
    assert torch.equal(valid.streams["valid"], other.streams["test"])
    del state["split_hashes"]
    assert "does not say whether it is its own" in loaded().tested_text
    test.unlink()
    with pytest.raises(DataError, match=r"does not exist; task\.test=FILE gives another text"):
        loaded()


def test_text_that_comes_with_python_or_is_one_file_is_left_for_another(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the dog sat.\n" * 100)
    (tmp_path / "more.txt").write_text("the dog sat.\n")
    state = _data(data="text", path=path).state_dict()
    for data, options in (("text", {"path": path}), ("stdlib", {})):
        other = LanguageModelingDataModule(data=data, test=tmp_path / "more.txt", **options)
        other.load_state_dict({**state, "data": data})
        other.setup("test")
        assert _words(other, "test") == ["the", "dog", "sat", ".", "<eos>"]
        with pytest.raises(DataError, match=r"task\."):
            other.setup("fit")


def test_state_of_the_same_data_is_accepted(wiki):
    data = _data(data="wikitext", path=wiki)
    state = data.state_dict()
    assert state["vocabulary"] == data.vocabulary.words
    data.load_state_dict(state)


def test_state_alone_gives_the_vocabulary(wiki):
    trained = _data(data="wikitext", path=wiki)
    data = LanguageModelingDataModule(data="wikitext", path=wiki, seq_len=4)
    data.load_state_dict(trained.state_dict())
    assert data.network_sizes == trained.network_sizes
    assert data.encode("the dog") == trained.encode("the dog")
    data.setup()
    assert data.streams


@pytest.mark.parametrize("before_setup", [True, False])
@pytest.mark.parametrize("what", ["vocabulary", "text"])
def test_state_of_other_data_is_refused_with_both_hashes(wiki, what, before_setup):
    old = _data(data="wikitext", path=wiki)
    name, text = {"vocabulary": ("train", "another text"), "text": ("valid", "the dog")}[what]
    (wiki / f"wiki.{name}.tokens").write_text(text)
    new = LanguageModelingDataModule(data="wikitext", path=wiki)

    def load_and_set_up():
        steps = [lambda: new.load_state_dict(old.state_dict()), new.setup]
        for step in steps if before_setup else reversed(steps):
            step()

    now = _data(data="wikitext", path=wiki)
    hashes = [
        (data.vocabulary.hash if what == "vocabulary" else data.fingerprint)[:12]
        for data in (old, now)
    ]
    with pytest.raises(DataError, match=f"{what} is another: {hashes[0]} .* {hashes[1]} now") as e:
        load_and_set_up()
    assert "another run_dir" in str(e.value)


def test_state_of_another_source_is_refused(wiki):
    state = _data(data="wikitext", path=wiki).state_dict()
    data = LanguageModelingDataModule(data="stdlib")
    with pytest.raises(DataError, match=r"task\.data=wikitext, now it is task\.data=stdlib"):
        data.load_state_dict(state)


def test_another_python_s_library_is_explained(wiki):
    data = LanguageModelingDataModule(data="stdlib")
    state = _data(data="wikitext", path=wiki).state_dict()
    data.load_state_dict({**state, "data": "stdlib"})
    with pytest.raises(DataError, match="use the Python version of the old run"):
        data.setup()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"data": "wiki"},
            "task.data=wiki is unknown; choose one of stdlib, wikitext103, wikitext2, ",
        ),
        ({"data": "stdlib", "path": "x"}, "task.data=stdlib reads no files"),
        ({"data": "wikitext"}, "needs task.path"),
        ({"data": "wikitext", "path": "/nowhere"}, "task.path=/nowhere is no folder"),
        ({"data": "text"}, "needs either task.path"),
        ({"data": "text", "path": "a", "train": "b"}, "needs either task.path"),
        ({"data": "text", "train": "b", "valid": "b"}, "needs either task.path"),
        ({"data": "text", "path": "/nowhere.txt"}, "/nowhere.txt does not exist"),
        ({"batch_size": 0}, "task.batch_size=0 is too small; it must be at least 1"),
        ({"seq_len": -1}, "task.seq_len=-1"),
        ({"min_count": 0}, "task.min_count=0"),
        ({"max_vocab_size": 2}, "task.max_vocab_size=2"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_read(arguments, message):
    with pytest.raises(DataError) as caught:
        _data(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n \n", "\ufeff"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_empty_files_are_named(wiki, split, content):
    path = wiki / f"wiki.{split}.tokens"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path} holds no words"):
        _data(data="wikitext", path=wiki)


@pytest.mark.fault(41)
def test_open_pipe_is_read_as_the_file_is(tmp_path):
    """As of `task.path=<(zcat text.gz)` in a shell."""
    text = "".join(f"word{i % 7} and{i % 5}\n" for i in range(20_000))
    (tmp_path / "text.txt").write_text(text)
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        thread = threading.Thread(target=lambda: (file.write(text), file.close()), daemon=True)
        thread.start()
        task = dict.fromkeys(("train", "valid", "test")) | {"path": f"/dev/fd/{reader}"}
        check_task({"data": "text", **task})
        found = _data(data="text", **task)
        thread.join()
    os.close(reader)
    whole = _data(data="text", path=tmp_path / "text.txt")
    assert found.fingerprint == whole.fingerprint
    assert found.vocabulary.words == whole.vocabulary.words


def test_too_small_a_file_to_split_is_named(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one line only\n")
    with pytest.raises(DataError, match=r"text.txt holds no words in bytes 12 to 13"):
        _data(data="text", path=path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("word " * 1000, "split between lines, and none of its 1 begins there"),
        ("word " * 1000 + "\nend\n", "split between lines, and none of its 2 begins there"),
        ("word\n" * 1000 + "\n" * 300, "; give more text"),
    ],
)
def test_why_a_part_of_a_text_holds_no_words_is_told(tmp_path, text, reason):
    path = tmp_path / "text.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=r"text\.txt holds no words in bytes") as caught:
        _data(data="text", path=path)
    assert reason in str(caught.value)


def test_text_whose_lines_returns_end_is_that_of_line_feeds(tmp_path):
    text = "".join(f"line {i} of a text.\n" for i in range(200))
    fingerprints = set()
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "text.txt").write_bytes(text.replace("\n", end).encode())
        fingerprints.add(_data(data="text", path=tmp_path / "text.txt").fingerprint)
    assert len(fingerprints) == 1


def test_bad_bytes_are_named_with_file_and_line(wiki):
    path = wiki / "wiki.valid.tokens"
    path.write_bytes(b"good\nb\xffd\n")
    with pytest.raises(DataError, match=f"{path}:2: byte 0xff"):
        _data(data="wikitext", path=wiki)


def test_too_little_text_for_the_lanes_names_both(wiki):
    data = _data(data="wikitext", path=wiki, batch_size=64)
    with pytest.raises(DataError, match=r"13 target tokens.*task\.batch_size=64"):
        data.train_dataloader()


def test_hash_and_text_of_shared_wikitext(shared_dir):
    folder = shared_dir / "data" / "wikitext-2"
    valid, test = folder / "wiki.valid.tokens", folder / "wiki.test.tokens"
    data = _data(data="wikitext", train=valid, valid=test, test=test)
    # The published sizes of WikiText-2's validation and test splits, with <eos>.
    assert len(data.streams["train"]) == 217_646
    assert len(data.streams["test"]) == 245_569


def test_evaluation_may_have_longer_segments_than_training(wiki):
    data = _data(data="wikitext", path=wiki, train=wiki / "wiki.train.tokens", eval_seq_len=3)
    assert [batch.inputs.shape[1] for batch in data.val_dataloader()] == [3]
    (first, *_) = data.train_dataloader()
    assert first.inputs.shape[1] == 4
    with pytest.raises(DataError, match=r"task\.eval_seq_len=0"):
        _data(data="wikitext", path=wiki, eval_seq_len=0)
