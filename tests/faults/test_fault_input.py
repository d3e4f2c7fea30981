"""Faults of what is put in: configuration, text, sizes."""

import math
import resource
import subprocess
import sys

import pytest

from tasks.lm import LanguageModelingDataModule
from tests.faults.processes import ROOT, rows, run

full = pytest.mark.full


def refused(arguments, tmp_path, *words, code=2):
    """Run it in a new interpreter: one line, soon, and torch was not needed for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = f"import sys, train\ncode = train.main({list(map(str, arguments))!r})\n"
    program += "print('torch' in sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(str(word) in line for word in words), line
    # processor time: what the wall clock shows depends on what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


@full  # tests/test_config.py has them in one process
@pytest.mark.fault(14)
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("size.d_modle=64", ("did you mean size.d_model?",)),
        ("modle=linear", ("did you mean model?",)),
        ("model=delta_dpf", ("did you mean delta_dpfp?", "softmax")),
        ("model/feature_map=dpfq", ("did you mean dpfp?", "favor")),
        ("nothing=1", ("nothing is not a key",)),
        ("trainer.max_steps=many", ("trainer.max_steps=many", "a whole number")),
        ("optimizer.lr=fast", ("optimizer.lr=fast", "a number")),
        ("optimizer.lr=nan", ("optimizer.lr=nan",)),
        ("size=", ("size=",)),
        ("trainer.precision=64", ("trainer.precision=64", "32-true")),
        ("seed=1,2", ("-m",)),
        ("trainer.max_steps", ("is not key=value",)),
        ("+new=1", ("only key=value works",)),
    ],
)
def test_mistake_in_a_key_or_value_is_explained(argument, words, tmp_path):
    refused([argument], tmp_path, *words)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["size.d_model=65", "size.n_heads=4"], ("size.d_model=65", "size.n_heads=4")),
        (["model.feature_map.nu=0"], ("nu=0", "at least 1")),
        pytest.param(["size.n_layers=-1"], ("size.n_layers=-1", "at least 1"), marks=full),
        pytest.param(["size.d_ff=0"], ("size.d_ff=0", "at least 1"), marks=full),
        pytest.param(["size.dropout=1.5"], ("size.dropout=1.5", "at most 1"), marks=full),
        pytest.param(["task.batch_size=0"], ("task.batch_size=0",), marks=full),
        pytest.param(["task.seq_len=-3"], ("task.seq_len=-3",), marks=full),
        pytest.param(["trainer.max_steps=0"], ("trainer.max_steps=0",), marks=full),
        pytest.param(
            ["optimizer.warmup_steps=50", "trainer.max_steps=20"], ("=50", "=20"), marks=full
        ),
        (["trainer=ddp", "trainer.devices=3", "task.batch_size=4"], ("=4", "3")),
        pytest.param(
            ["task=mqar", "task.n_pairs=[40]", "task.seq_len=64"], ("40", "64"), marks=full
        ),
    ],
    ids=str,
)
def test_impossible_sizes_are_named(arguments, words, tmp_path):
    refused(arguments, tmp_path, *words)


@pytest.mark.fault(15)
def test_a_size_that_only_the_map_knows_is_named_before_anything_is_trained(tiny, tmp_path):
    words = [*tiny, "model.feature_map.nu=64", "size.d_head=16", f"run_dir={tmp_path / 'run'}"]
    ended = run(words, folder=tmp_path / "output")
    assert ended.code == 2
    (error,) = ended.errors
    assert "nu=64" in error
    assert "31" in error
    assert not (tmp_path / "run").exists()


TEXT = ("size=tiny", "task.data=text")


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "blank",
        *(pytest.param(k, marks=full) for k in ("folder", "empty", "unreadable name")),
    ],
)
def test_file_without_text_is_named(kind, tmp_path):
    path = tmp_path / ("x" * 300 if kind == "unreadable name" else "text.txt")
    if kind == "folder":
        path.mkdir()
    elif kind in ("empty", "blank"):
        path.write_text("" if kind == "empty" else "\n \n\t\n" * 50)
    refused([*TEXT, f"task.path={path}"], tmp_path, path)


@pytest.mark.fault(16)
@full
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_split_without_text_is_named(split, tmp_path):
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "valid", "test")}
    for name, path in files.items():
        path.write_text("\n\n" if name == split else "some words\n" * 20)
    arguments = [f"task.{name}={path}" for name, path in files.items()]
    refused([*TEXT, *arguments], tmp_path, files[split])
    refused(["task.data=wikitext", f"task.path={tmp_path}"], tmp_path, "wiki.train.tokens")


@pytest.mark.fault(17)
@pytest.mark.parametrize(("bad", "word"), [(b"b\xffad", "UTF-8"), (b"b\0d", "NUL")])
def test_bytes_that_are_no_text_are_named_with_their_line(bad, word, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"good words here\n" * 6 + bad + b"\n" + b"good words here\n" * 30)
    refused([*TEXT, f"task.path={path}"], tmp_path, f"{path}:7", word)


@pytest.mark.fault(17)
def test_byte_order_mark_and_carriage_returns_change_nothing(tmp_path):
    found = {}
    for name, mark, end in (("plain", b"", b"\n"), ("windows", b"\xef\xbb\xbf", b"\r\n")):
        files = {}
        for split in ("train", "valid", "test"):
            files[split] = tmp_path / f"{name}.{split}"
            lines = [f"{split} word{i % 7} na\u00efve" for i in range(40)]
            files[split].write_bytes(mark + end.join(line.encode() for line in lines) + end)
        data = LanguageModelingDataModule(data="text", **files)
        data.setup()
        found[name] = (data.fingerprint, data.vocabulary.words)
    assert found["plain"] == found["windows"]


@full
@pytest.mark.fault(18)
def test_line_of_50_mb_is_read_in_bounded_memory(tmp_path):
    path, short = tmp_path / "line.txt", tmp_path / "short.txt"
    short.write_text("word1 and1 " * 1000)
    with path.open("w") as file:
        for i in range(50):
            file.write(f"word{i} and{i} " * (10**6 // 12))
    code = (
        "import resource, sys; from tasks.lm import LanguageModelingDataModule as M\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = M(data='text', train=sys.argv[1], valid=sys.argv[2], test=sys.argv[2])\n"
        "data.setup()\n"
        "print(len(data.streams['train']))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(short)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    words, kilobytes = map(int, done.stdout.split())
    assert words == 50 * 2 * (10**6 // 12) + 1
    assert kilobytes < 150_000  # 8 million numbers are 33 to 67 MB of it


@pytest.mark.fault(18)
def test_line_of_50_mb_without_a_space_is_refused(tmp_path):
    path = tmp_path / "line.txt"
    path.write_bytes(b"x" * 50_000_000)
    refused([*TEXT, f"task.path={path}"], tmp_path, f"{path}:1", "without a space")


def pairs_of_files(folder, **changed):
    """The arguments for three splits of sentences, one file changed."""
    for split in ("train", "valid", "test"):
        for lang in ("en", "de"):
            text = "".join(f"word{i % 9} and {lang}{i % 7}\n" for i in range(60))
            (folder / f"{split}.{lang}").write_text(changed.get(f"{split}_{lang}", text))
    return [
        "task=translation",
        "task.data=files",
        *(f"task.{split}={folder / split}" for split in ("train", "valid", "test")),
    ]


@pytest.mark.fault(19)
@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_different_length_are_named_with_both_counts(split, tmp_path):
    arguments = pairs_of_files(tmp_path, **{f"{split}_de": "ein Satz\n" * 70})
    refused(arguments, tmp_path, f"{split}.en has 60 lines", f"{split}.de 70")


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ein Satz\n" * 30 + "\n" + "ein Satz\n" * 29, ("train.de:31 is blank",)),
        ("", ("train.de has 0 lines", "60")),
        ("\n" * 60, ("train.de:1 is blank",)),
    ],
    ids=["one", "nothing", "blank"],
)
def test_blank_side_of_a_pair_is_named(text, words, tmp_path):
    refused(pairs_of_files(tmp_path, train_de=text), tmp_path, *words)


@pytest.mark.fault(24)
@full
def test_corpus_that_cannot_be_downloaded_is_one_line_and_leaves_no_file(tmp_path):
    nowhere = {"https_proxy": "http://127.0.0.1:9", "FWLIGHT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "size=tiny", "task.data=ptb"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **nowhere},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 5, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be downloaded" in line
    assert "task.path=" in line
    names = {file.name for file in (tmp_path / "cache" / "data").rglob("*") if file.is_file()}
    assert all(name.endswith(".lock") for name in names), names


def undefined(name, value):
    """Whether a metric is 0/0 or worse; what the diagnostics measure may not exist (one key has no
    neighbours), and is NaN then."""
    return name.startswith(("train/", "val/", "test/")) and not math.isfinite(value)


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    ("words", "arguments", "code", "said"),
    [
        (400, ["task.batch_size=1", "task.seq_len=10000"], 0, ""),  # longer than the text
        (400, ["task.batch_size=3", "task.seq_len=1"], 0, ""),
        (400, ["task.batch_size=2000", "task.seq_len=7"], 2, "task.batch_size=2000"),
        (1, [], 2, "no words"),
        (60, ["task.batch_size=2", "task.seq_len=50"], 0, ""),  # evaluation of a few words
    ],
    ids=str,
)
def test_short_text_and_long_sequences_are_defined(words, arguments, code, said, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"w{i % 9}" for i in range(words)) + "\n")
    short = ["trainer.max_steps=3", "trainer.val_check_interval=2", "optimizer.warmup_steps=0"]
    arguments = [*TEXT, *short, *arguments, f"task.path={path}", f"run_dir={tmp_path / 'run'}"]
    ended = run(arguments, folder=tmp_path / "output")
    assert ended.code == code, ended.err
    if code:
        assert said in ended.errors[0]
        return
    values = {name: float(value) for (_, name), value in rows(tmp_path / "run").items()}
    assert {"train/loss", "val/loss", "test/loss"} <= values.keys()
    assert [name for name, value in values.items() if undefined(name, value)] == []


@full
@pytest.mark.fault(21)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["task=retrieval", "task.n_keys=1"], 0),
        (["task=retrieval", "task.n_keys=1", "task.setting=update", "task.batch_size=1"], 0),
        (["task=mqar", "size=tiny", "task.n_pairs=[1]", "task.seq_len=4", "task.vocab_size=4"], 0),
        (["task=mqar", "size=tiny", "task.n_pairs=[1]", "task.seq_len=1"], 2),
    ],
    ids=str,
)
def test_shortest_synthetic_sequences_are_defined(arguments, code, tmp_path):
    short = ["trainer.max_steps=3", "trainer.val_check_interval=2", "optimizer.warmup_steps=0"]
    ended = run([*arguments, *short, f"run_dir={tmp_path / 'run'}"], folder=tmp_path / "output")
    assert ended.code == code, ended.err
    if not code:
        values = {name: float(value) for (_, name), value in rows(tmp_path / "run").items()}
        assert [name for name, value in values.items() if undefined(name, value)] == []
