"""`trainer=fsdp`: training as in one process, half of everything in each, checkpoints of one."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from fwlight.run.checkpoint_io import load_checkpoint
from tests.faults import processes, victims
from tests.run.sharded import CASES, REFUSED, alone, rank
from tests.tasks.test_translation_data import ENGLISH, german
from train import main

SHARDED = ("trainer=fsdp", "trainer.devices=2")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "pairs.en").write_text("\n".join(ENGLISH) + "\n")
    (folder / "pairs.de").write_text("\n".join(map(german, ENGLISH)) + "\n")
    return {"text": victims.write_text(folder / "text.txt"), "pairs": folder / "pairs"}


@pytest.fixture(scope="module")
def runs(places, tmp_path_factory) -> Path:
    """Every case as one process in `one`, as two with `trainer=fsdp` in `two`."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = {"alone": (alone, folder / "one")}
    work |= {f"rank {i}": (rank, i, port, folder / "two") for i in range(2)}
    started = []
    for name, (function, *arguments) in work.items():
        arguments[-1].mkdir(exist_ok=True)
        told = folder / f"{name}.log"
        process = processes.CONTEXT.Process(target=_told, args=(told, function, places, arguments))
        process.start()
        started.append((process, told))
    for process, told in started:
        process.join(300)
        assert process.exitcode == 0, told.read_text()[-5000:]
    return folder


def _told(path: Path, function, places, arguments) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(descriptor, number)
    function(*arguments, **places)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_of_everything_train_as_one(runs, case) -> None:
    one, two = (processes.rows(runs / name / case) for name in ("one", "two"))
    assert list(one) == list(two)
    metrics = {key[1] for key in one}
    assert {"train/loss", "train/grad_norm", "val/loss", "test/loss"} <= metrics
    for key, value in one.items():
        assert float(two[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-6, nan_ok=True), key
    expected, found = (processes.results(runs / name / case) for name in ("one", "two"))
    assert found["parameters"] == expected["parameters"]
    for name in ("last.ckpt", "best.ckpt"):
        paths = [runs / x / case / "checkpoints" / name for x in ("one", "two")]
        compare(*map(load_checkpoint, paths))


def compare(one, two) -> None:
    """Checkpoints of one process and of two hold the same, in the same form."""
    assert list(one) == list(two)
    assert len(two["rng"]) == 2
    for part in ("state_dict", "average", "optimizer_states"):
        left, right = leaves(one.get(part)), leaves(two.get(part))
        assert left.keys() == right.keys()
        for key, x in left.items():
            torch.testing.assert_close(right[key], x, rtol=1e-4, atol=1e-6)
    shared = {x.data_ptr() for x in one["state_dict"].values()}
    assert len({x.data_ptr() for x in two["state_dict"].values()}) == len(shared)


def leaves(value, where=()):
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: x for key, item in items for k, x in leaves(item, (*where, key)).items()}
    return {where: value} if isinstance(value, torch.Tensor) else {}


def test_each_of_two_processes_holds_half_of_what_it_holds_without_sharding(runs) -> None:
    held = [int((runs / "two" / f"averaged.{i}.bytes").read_text()) for i in range(2)]
    whole = int((runs / "two" / "ddp.0.bytes").read_text())
    print(f"bytes of each: {held}, without sharding {whole}")
    assert max(held) <= 0.6 * whole


def test_number_that_is_infinite_on_one_process_is_noticed_by_all(runs) -> None:
    assert processes.results(runs / "two" / "skipping")["skipped_updates"] == 1
    told = (runs / "rank 0.log").read_text()
    assert "the gradient of step 3 is not finite (first in network." in told
    codes = [json.loads((runs / "two" / f"{i}.json").read_text()) for i in range(2)]
    assert codes[0] == codes[1] == {"infinite": 3, **dict.fromkeys(REFUSED, 2)}
    for _, line in REFUSED.values():
        assert line in told


@pytest.mark.parametrize("case", ["lm", "averaged"])
def test_one_process_goes_on_with_what_two_have_saved(runs, places, case, tmp_path) -> None:
    kept = {"lm": "step-000025.ckpt", "averaged": "step-000003.ckpt"}[case]
    words = given(case, places)
    resume = f"resume={runs / 'two' / case / 'checkpoints' / kept}"
    assert main([*words, resume, f"run_dir={tmp_path / 'run'}"]) == 0
    expected, found = (processes.results(x) for x in (runs / "two" / case, tmp_path / "run"))
    for name in ("train/loss", "val/loss", "test/loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def given(case, places) -> list[str]:
    words = {word.partition("=")[0]: word for word in CASES[case]}
    return [word.format(**places) for word in words.values()]


def test_one_process_uses_the_checkpoint(runs, tmp_path, capsys) -> None:
    lm, translation = (
        f"ckpt={runs / 'two' / case / 'checkpoints' / 'best.ckpt'}"
        for case in ("lm", "translation")
    )
    assert main(["action=test", lm, f"output={tmp_path / 'test.txt'}"]) == 0
    tested = json.loads((tmp_path / "test.txt").read_text())["test/loss"]
    expected = processes.results(runs / "two" / "lm")["test/loss"]
    assert tested == pytest.approx(expected, rel=1e-5)
    capsys.readouterr()
    said = []
    for checkpoint in (lm, lm.replace("/two/", "/one/")):
        words = ["action=generate", checkpoint, "prompt=w1 w2 w3", "generate.max_new_tokens=5"]
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
    assert main(["action=diagnose", lm, f"output={tmp_path / 'diagnosis.html'}"]) == 0
    assert "layer1" in (tmp_path / "diagnosis.html").read_text()
    (tmp_path / "source").write_text("".join(f"{line}\n" for line in ENGLISH[:3]))
    output = f"output={tmp_path / 'target'}"
    assert main(["action=translate", translation, f"input={tmp_path / 'source'}", output]) == 0
    assert len((tmp_path / "target").read_text().splitlines()) == 3


def test_killed_processes_go_on_bit_for_bit(places, tmp_path, free_port) -> None:
    tiny = [*processes.TINY, "logger=none", f"task.path={places['text']}"]  # with dropout

    def start(name, code=0, **settings):
        words = [*tiny, f"run_dir={tmp_path / name}", "resume=auto"]
        folder = tmp_path / f"{name}-output"
        settings |= {"port": free_port, "two": SHARDED}
        ended = processes.run(words, folder=folder, **settings)
        assert ended.code == code, ended.err
        return ended.out

    start("whole")
    start("run", -signal.SIGKILL, fault={"kind": "kill", "step": 13})
    assert "after step 10" in start("run")
    processes.assert_same_run(tmp_path / "run", tmp_path / "whole")
