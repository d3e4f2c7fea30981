import gzip

import pytest

from fwlight.errors import StorageError
from fwlight.types import DataError
from tasks import translation
from tasks.text import parallel, public_pairs
from tasks.text.bpe import UNK_ID, encode_all, load_bpe, train_bpe
from tasks.translation import TranslationDataModule

GERMAN = {"a": "ein", "the": "der", "man": "Mann", "dog": "Hund", "sees": "sieht", "old": "alter"}
ENGLISH = [f"{a} {b} sees {c} {d}." for a in ("a", "the") for b in ("man", "dog", "old dog")
           for c in ("a", "the") for d in ("man", "dog", "old man")]  # fmt: skip


def german(sentence: str) -> str:
    return " ".join(GERMAN[word] for word in sentence[:-1].split()) + "."


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    write(tmp_path, "train", ENGLISH * 3)
    write(tmp_path, "valid", ENGLISH[::7])
    write(tmp_path, "test", ENGLISH[::5])
    return {split: str(tmp_path / split) for split in ("train", "valid", "test")}


def write(folder, split: str, english: list[str]) -> None:
    (folder / f"{split}.en").write_text("\n".join(english) + "\n")
    (folder / f"{split}.de").write_text("\n".join(map(german, english)) + "\n")


def make(files, **changes) -> TranslationDataModule:
    options = {"data": "files", "vocab_size": 100, "batch_tokens": 50} | files | changes
    return TranslationDataModule(**options)


def fails(files, error=DataError, **changes) -> str:
    with pytest.raises(error) as caught:
        make(files, **changes).setup()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_batches_decode_to_the_text(files) -> None:
    data = make(files)
    data.setup()
    sources, targets = data.sentences("test")
    assert (sources, targets) == (ENGLISH[::5], list(map(german, ENGLISH[::5])))
    seen = 0
    for batch in data.test_dataloader():
        for ids, answer, row in zip(
            batch.source, batch.inputs, batch.numbers.tolist(), strict=True
        ):
            assert data.decode(ids.tolist()) == sources[row]
            assert data.decode(answer.tolist()) == targets[row]
            seen += 1
    assert seen == len(sources)


def test_cache_is_filled_once_and_anew_for_other_text(files, tmp_path, monkeypatch) -> None:
    first = make(files)
    first.setup()
    monkeypatch.setattr(translation, "train_bpe", lambda *_, **__: pytest.fail("learnt again"))
    second = make(files)
    second.setup()
    assert second.vocab_hash == first.vocab_hash
    monkeypatch.undo()
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    write(tmp_path, "train", ENGLISH * 2)
    third = make(files)
    third.setup()
    assert third.fingerprint != first.fingerprint
    assert len(third.pairs["train"]) == 2 * len(ENGLISH)


@pytest.mark.fault(45)
def test_packed_and_plain_files_are_the_same(files, tmp_path) -> None:
    plain = make(files)
    plain.setup()
    for file in tmp_path.glob("*.??"):
        with gzip.open(f"{file}.gz", "wb") as packed:
            packed.write(file.read_bytes())
        file.unlink()
    packed = make(files)
    packed.setup()
    assert packed.vocab_hash == plain.vocab_hash


def test_checkpoint_brings_the_vocabulary_and_refuses_other_text(files, tmp_path) -> None:
    old = make(files)
    old.setup()
    state = old.state_dict()
    alone = make(files)
    alone.load_state_dict(state)
    assert alone.network_sizes == old.network_sizes
    assert alone.encode_source(["the man."]) == old.encode_source(["the man."])
    write(tmp_path, "train", ENGLISH * 2)
    with pytest.raises(DataError, match="text is another"):
        alone.setup()
    with pytest.raises(DataError, match=r"task\.data=files, now it is task\.data=cldr"):
        TranslationDataModule().load_state_dict(state)


def test_checkpoint_is_tested_on_any_pairs_and_says_which(files, tmp_path) -> None:
    old = make(files)
    old.setup()
    state = old.state_dict()
    own = make(files)
    own.load_state_dict(state)
    for split in ("train", "valid"):
        for file in tmp_path.glob(f"{split}.*"):
            file.unlink()
    own.setup("test")
    own.load_state_dict(state)
    batches = [list(data.test_dataloader()) for data in (old, own)]
    assert all(a.source.equal(b.source) for a, b in zip(*batches, strict=True))
    assert own.sentences("test") == old.sentences("test")
    names = f"{tmp_path}/test.en, {tmp_path}/test.de"
    assert own.tested_text.startswith(f"{names}, test split, 8 pairs")
    assert own.tested_text.endswith("; the checkpoint's own")
    (tmp_path / "more.en").write_text("the dog sees 漢漢漢漢漢漢漢漢.\n")
    (tmp_path / "more.de").write_text("der Hund sieht.\n")
    other = make(files, test=str(tmp_path / "more"))
    other.load_state_dict(state)
    other.setup("diagnose")
    assert other.sentences("test")[1] == ["der Hund sieht."]
    assert "1 pairs" in other.tested_text
    assert " 0.00%" not in other.tested_text
    assert "not the checkpoint's own" in other.tested_text
    del state["split_keys"]
    gone = make(files, test=str(tmp_path / "gone"))
    gone.load_state_dict(state)
    with pytest.raises(DataError, match=r"gone\.en does not exist; task\.test=NAME gives other"):
        gone.setup("test")


def test_model_of_a_fixed_source_is_tested_on_files(files) -> None:
    state = {**_state(files), "data": "multi30k"}
    data = TranslationDataModule(data="multi30k", test=files["test"])
    data.load_state_dict(state)
    data.setup("test")
    assert len(data.pairs["test"]) == len(ENGLISH[::5])
    with pytest.raises(DataError, match=r"does not read task\.train, valid and test"):
        data.setup("fit")


def _state(files):
    data = make(files)
    data.setup()
    return data.state_dict()


def test_long_and_lopsided_pairs_are_left_out_of_training_only(files, tmp_path) -> None:
    for split in ("train", "valid", "test"):
        with (tmp_path / f"{split}.en").open("a") as en, (tmp_path / f"{split}.de").open("a") as de:
            en.write("man " * 60 + "\n" + "man " * 20 + "\n")
            de.write("Mann " * 60 + "\nMann\n")
    data = make(files, max_length=50, max_ratio=3.0)
    data.setup()
    assert len(data.pairs["train"]) == 3 * len(ENGLISH)
    assert len(data.pairs["test"]) == len(ENGLISH[::5]) + 2
    assert "no pair of the train split is short enough" in fails(files, max_length=1)


def test_pairs_with_a_blank_side_can_be_left_out_and_are_counted(files, tmp_path, capsys) -> None:
    with (tmp_path / "train.en").open("a") as en, (tmp_path / "train.de").open("a") as de:
        en.write("\nthe man\n\n")
        de.write("der Mann\n  \n\n")
    with (tmp_path / "test.en").open("r+") as en:
        whole = en.read()
        en.seek(0)
        en.write("\n" + whole.split("\n", 1)[1])
        en.truncate()
    assert "task.drop_blank=true" in fails(files)
    data = make(files, drop_blank=True)
    data.setup()
    assert len(data.pairs["train"]) == 3 * len(ENGLISH)
    told = capsys.readouterr().err
    assert f"train: {3 * len(ENGLISH)} pairs; left out 2 with a blank side and 0 too long" in told
    sources, targets = data.sentences("test")
    assert len(sources) == len(targets) == len(data.pairs["test"]) == len(ENGLISH[::5]) - 1
    assert sources[0] == ENGLISH[::5][1]


def test_unusable_files_are_explained(files, tmp_path) -> None:
    english, german_file = tmp_path / "train.en", tmp_path / "train.de"
    whole = english.read_bytes(), german_file.read_bytes()
    english.write_bytes(whole[0] + b"one more.\n")
    assert "train.de has 108 lines and" in fails(files)
    english.write_bytes(b"\n" + whole[0].split(b"\n", 1)[1])
    assert f"{english}:1 is blank and {german_file}:1 is not" in fails(files)
    english.write_bytes(whole[0].replace(b"dog", b"d\xffg", 1))
    assert "byte 0xff is not valid UTF-8" in fails(files)
    english.write_bytes(b"")
    assert "train.en has 0 lines" in fails(files)
    german_file.write_bytes(b"")
    assert "hold no sentence pair" in fails(files)
    english.unlink()
    assert "train.en does not exist" in fails(files)


@pytest.mark.fault(45)
def test_damaged_gz_file_is_named(files, tmp_path) -> None:
    file = tmp_path / "train.en"
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(file.read_bytes())[:-10])
    file.unlink()
    assert "train.en.gz is no whole .gz file" in fails(files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "wmt15"}, "task.data=wmt15 is unknown"),
        ({"train": None}, "needs task.train"),
        ({"target_lang": "en"}, "are both en"),
        ({"vocab_size": 3}, "task.vocab_size=3 is too small"),
        ({"path": "x"}, "does not read task.path"),
        ({"data": "cldr"}, "does not read task.train"),
        ({"data": "wmt14", "train": None, "valid": None, "test": None, "target_lang": "fr"}, "fr"),
    ],
)
def test_bad_values_are_named(files, changes, message: str) -> None:
    assert message in fails(files, **changes)


def test_multi30k_is_held_to_its_hashes(shared_dir, tmp_path) -> None:
    source = shared_dir / "data" / "multi30k"
    pairs = parallel.open_pairs(
        "multi30k", source_lang="en", target_lang="de", path=source, given={}, seed=1
    )
    assert sum(1 for _ in pairs["valid"].pairs()) == 1014
    first = next(pairs["test"].pairs())
    assert first[0] == "A man in an orange hat starring at something."
    for file in source.glob("*.gz"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "val.de.gz").write_bytes(gzip.compress(b"anderes\n"))
    with pytest.raises(DataError, match=r"val\.de\.gz is not the file of Multi30k"):
        parallel.open_pairs(
            "multi30k", source_lang="en", target_lang="de", path=tmp_path, given={}, seed=1
        )


def test_downloads_that_fail_name_the_manual_steps(monkeypatch) -> None:
    monkeypatch.setattr(public_pairs, "_MULTI30K_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr("tasks.io.downloads.PAUSE", 0.0)
    message = fails({}, StorageError, data="multi30k")
    assert "train.en.gz cannot be downloaded" in message
    assert "github.com/multi30k/dataset" in message


def test_wmt14_archives_become_the_three_splits(tmp_path, monkeypatch) -> None:
    text = {
        "europarl-v7.de-en": [("Yes.", "Ja."), ("", "Leer.")],
        "commoncrawl.de-en": [("No.", "Nein.")],
        "news-commentary-v9.de-en": [("Good day.", "Guten Tag.")],
        "newstest2013": [("A house.", "Ein Haus.")],
    }
    for name, rows in text.items():
        for side, language in enumerate(("en", "de")):
            (tmp_path / f"{name}.{language}").write_text("\n".join(r[side] for r in rows) + "\n")
    for kind, language, line in (
        ("src", "en", "Tea &amp; milk."),
        ("ref", "de", "Tee &amp; Milch."),
    ):
        sgm = f'<refset>\n<seg id="1">{line}</seg>\n</refset>\n'
        (tmp_path / f"newstest2014-deen-{kind}.{language}.sgm").write_text(sgm)
    monkeypatch.setattr(public_pairs, "fetch", lambda download, **_: tmp_path / download.name)
    monkeypatch.setattr(public_pairs, "extract", lambda _: tmp_path)
    splits = parallel.open_pairs(
        "wmt14", source_lang="en", target_lang="de", path=None, given={}, seed=1
    )
    pairs = {split: list(splits[split].pairs()) for split in splits}
    whole = [("Yes.", "Ja."), ("No.", "Nein."), ("Good day.", "Guten Tag.")]
    assert list(filter(all, pairs["train"])) == whole
    assert ("", "Leer.") in pairs["train"]  # which the data module leaves out and counts
    assert pairs["valid"] == [("A house.", "Ein Haus.")]
    assert pairs["test"] == [("Tea & milk.", "Tee & Milch.")]


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", "<pad>"])
def test_special_entries_in_a_text_are_text(token) -> None:
    text = f"the {token}old{token} dog"
    for bpe in (train_bpe([text] * 3, vocab_size=100), load_bpe(_plain_bpe().to_str())):
        for ids in (bpe.encode(text).ids, encode_all(bpe, [text])[0]):
            assert min(ids) > UNK_ID
            assert bpe.decode(ids) == text


def _plain_bpe():
    return train_bpe(["the old dog </unkspad>"], vocab_size=100)


def test_all_characters_have_room_or_their_share_is_told(files, tmp_path, capsys) -> None:
    signs = [chr(0x4E00 + i) for i in range(2200)]
    for split, n in (("train", 2200), ("valid", 1100), ("test", 1100)):
        (tmp_path / f"{split}.en").write_text("the man.\n" * (n // 10))
        (tmp_path / f"{split}.de").write_text(
            "".join(f"{''.join(signs[i : i + 10])}\n" for i in range(0, n, 10))
        )
    data = make(files, vocab_size=3000)
    data.setup()
    _, targets = data.sentences("test")
    for batch in data.test_dataloader():
        for ids, row in zip(batch.inputs, batch.numbers.tolist(), strict=True):
            assert data.decode(ids.tolist()) == targets[row]
    assert capsys.readouterr().err == ""
    for _ in range(2):  # made, and from the cache
        make(files, vocab_size=1100).setup()
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 3
        unknown = 2200 - (1100 - 4 - 8)  # the special ones; in the English there are " theman."
        share = unknown / (2200 + 220 * len("theman."))
        assert told[0].startswith(f"warning: {share:.2%} of the characters of the train split are")


def test_bpe_gives_texts_back_and_spells_numbers() -> None:
    texts = ["Straße (12,5 km) - 3:30 Uhr!", "  two   spaces ", "äöü €"]
    bpe = train_bpe(texts * 2, vocab_size=200)
    for text in texts:
        ids = bpe.encode(text, add_special_tokens=False).ids
        assert bpe.decode(ids) == " ".join(text.split())
    assert {"1", "2", "5"} <= set(bpe.encode(texts[0]).tokens)
    assert UNK_ID in bpe.encode("漢").ids
    assert load_bpe(bpe.to_str()).to_str() == bpe.to_str()
    with pytest.raises(DataError, match="cannot be read"):
        load_bpe("{}")
    with pytest.raises(DataError, match="no text"):
        train_bpe([], vocab_size=200)
