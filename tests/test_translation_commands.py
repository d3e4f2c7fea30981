"""task=translation as its users meet it: train, kill and resume, translate, choose parts."""

import io
import json
import os
import signal
from pathlib import Path

import pytest

from fwlight.run import load_checkpoint
from tests.faults.processes import run
from tests.run.standin import rows
from tests.tasks.test_translation_data import ENGLISH, german
from train import main


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    for split, english in (("train", ENGLISH * 2), ("valid", ENGLISH[::7]), ("test", ENGLISH[::5])):
        (folder / f"{split}.en").write_text("\n".join(english) + "\n")
        (folder / f"{split}.de").write_text("\n".join(map(german, english)) + "\n")
    return [
        *("task=translation", "task.data=files", "size=tiny", "logger=none", "task.vocab_size=100"),
        *(f"task.{split}={folder / split}" for split in ("train", "valid", "test")),
        *("task.batch_tokens=100", "optimizer.lr=1e-2", "optimizer.warmup_steps=10"),
        *("trainer.max_steps=30", "trainer.val_check_interval=15", "trainer.log_every_n_steps=1"),
        "callbacks.checkpoint.every_n_train_steps=7",
    ]


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    before = os.environ.get("FWLIGHT_CACHE")
    os.environ["FWLIGHT_CACHE"] = str(folder.with_name("cache"))
    try:
        assert main([*arguments, f"run_dir={folder}"]) == 0
        yield folder
    finally:
        os.environ.pop("FWLIGHT_CACHE")
        if before is not None:
            os.environ["FWLIGHT_CACHE"] = before


def losses(folder: Path) -> list[tuple[int, str]]:
    found = [(step, x) for (step, metric), x in rows(folder).items() if metric == "train/loss"]
    assert [step for step, _ in found] == list(range(1, 31))
    return found


def test_summary_has_the_scores(trained) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert {"test/bleu", "test/bleu_lowercase", "test/chrf", "test/exact_match"} <= set(summary)
    assert 0 <= summary["val/bleu"] <= 100
    assert summary["val/ppl"] < 50


def test_killed_in_mid_epoch_it_goes_on_with_the_same_batches(arguments, trained, tmp_path) -> None:
    command = [*arguments, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    cache = {"FWLIGHT_CACHE": os.environ["FWLIGHT_CACHE"]}
    settings = {"folder": tmp_path / "output", "environment": cache, "timeout": 300}
    killed = run(command, fault={"kind": "kill", "step": 18}, **settings)
    assert killed.code == -signal.SIGKILL, killed.err
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["global_step"] in (14, 15)  # with more batches to come in this epoch
    resumed = run(command, **settings)
    assert resumed.code == 0, resumed.err
    assert losses(tmp_path / "run") == losses(trained)


def test_translate_reads_a_file_or_standard_input(trained, tmp_path, monkeypatch, capsys) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    text = "the old dog sees a man.\r\n\nthe man sees a dog.\n"
    source = tmp_path / "in.txt"
    source.write_bytes(text.encode())
    output = tmp_path / "out.txt"
    assert main(["action=translate", ckpt, f"input={source}", f"output={output}"]) == 0
    lines = output.read_text().split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    assert lines[0]
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["action=translate", ckpt, "translate.batch_size=1"]) == 0
    assert capsys.readouterr().out.split("\n") == lines
    source.write_bytes(text.replace("\r", "").replace("\n", "\r").encode())
    assert main(["action=translate", ckpt, f"input={source}"]) == 0
    assert capsys.readouterr().out.split("\n") == lines
    source.write_bytes(b"ok\nd\xffg\n")
    assert main(["action=translate", ckpt, f"input={source}"]) == 2
    assert "byte 0xff in line 2 is not valid UTF-8" in capsys.readouterr().err
    assert main(["action=translate", ckpt, f"input={tmp_path / 'none'}"]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n", "\n\n", " \n", "\n \r\n\n", "\ufeff\n"])
def test_as_many_lines_come_out_as_go_in_also_where_none_has_words(
    trained, tmp_path, monkeypatch, capsys, text
) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    output = tmp_path / "out.txt"
    for more in ([], [f"output={output}"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        assert main(["action=translate", ckpt, *more]) == 0
        written = output.read_text() if more else capsys.readouterr().out
        assert written == "\n" * text.count("\n")


def test_checkpoint_alone_translates_and_is_tested_on_other_pairs(
    arguments, trained, tmp_path, capsys
) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'best.ckpt'}"
    test = Path(next(text for text in arguments if text.startswith("task.test=")).split("=")[1])
    (tmp_path / "in").write_text("the old man.\n")
    other = tmp_path / "other"
    for language, line in (("en", "the dog sees a man."), ("de", "der Hund sieht ein Mann.")):
        Path(f"{other}.{language}").write_text(f"{line}\n")
    moved = test.parent.rename(test.parent.with_name("moved"))
    try:
        assert main(["action=translate", ckpt, f"input={tmp_path / 'in'}"]) == 0
        capsys.readouterr()
        asked = ["action=test", ckpt, f"output={tmp_path / 'test.json'}"]
        assert main(asked) == 2
        assert "does not exist; task.test=NAME gives other pairs" in capsys.readouterr().err
        summary = json.loads((trained / "summary.json").read_text())
        for place, own in ((other, "not the checkpoint's own"), (moved / "test", "; the ")):
            assert main([*asked, f"task.test={place}"]) == 0
            found = json.loads((tmp_path / "test.json").read_text())
            assert f"{place}.en, {place}.de, test split" in found["tested_text"]
            assert own in found["tested_text"]
        assert found["test/bleu"] == summary["test/bleu"]
    finally:
        moved.rename(test.parent)


def test_test_action_repeats_the_scores(trained, capsys) -> None:
    ckpt = f"ckpt={trained / 'checkpoints' / 'best.ckpt'}"
    assert main(["action=test", ckpt, "translate.beam=1"]) == 0
    capsys.readouterr()
    assert main(["action=test", ckpt]) == 0
    summary = json.loads((trained / "summary.json").read_text())
    printed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()[:8])
    assert float(printed["test/bleu"]) == pytest.approx(summary["test/bleu"], rel=1e-5)


def test_two_processes_train_as_one(arguments, trained, tmp_path, free_port) -> None:
    cache = {"FWLIGHT_CACHE": os.environ["FWLIGHT_CACHE"]}
    for name, port in (("two", free_port), ("one", None)):
        command = [*arguments, "size.dropout=0", f"run_dir={tmp_path / name}"]
        output = tmp_path / f"{name}-output"
        done = run(command, folder=output, port=port, environment=cache, timeout=300)
        assert done.code == 0, done.err
    pairs = zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True)
    for (_, one), (_, two) in pairs:
        assert float(two) == pytest.approx(float(one), rel=1e-3)
    scores = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two")]
    assert scores[0]["test/bleu"] == pytest.approx(scores[1]["test/bleu"], abs=3.0)
    assert scores[0]["val/loss"] == pytest.approx(scores[1]["val/loss"], rel=1e-2)
