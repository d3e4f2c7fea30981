"""Faults of processes: killed, signalled, lost, resumed elsewhere."""

import json
import math
import os
import shutil
import signal
import time

import pytest
import torch

from tests.faults.processes import TWO, Running, assert_same_run, rows, run, weights


@pytest.fixture
def start(tiny, tmp_path, free_port):
    """Run a training in `tmp_path / name`, with the arguments given last, on one rank or two."""

    def started(*arguments, name="run", resume="auto", ranks=1, **settings):
        words = [*tiny, f"run_dir={tmp_path / name}", f"resume={resume}", *arguments]
        port = free_port if ranks == 2 else None
        return run(words, folder=tmp_path / f"{name}-output", port=port, **settings)

    return started


@pytest.mark.fault(1)
@pytest.mark.parametrize("step", [13, *(pytest.param(n, marks=pytest.mark.full) for n in (3, 22))])
def test_killed_run_resumes_exactly(start, whole, tmp_path, step):
    assert start(fault={"kind": "kill", "step": step}).code == -signal.SIGKILL
    assert start().code == 0
    assert_same_run(tmp_path / "run", whole)


SIGNALS = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138}


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("SIGTERM", 13),
        ("SIGINT", 14),
        *(
            pytest.param(name, step, marks=pytest.mark.full)
            for name, step in (
                ("SIGTERM", 14),
                ("SIGINT", 13),
                ("SIGUSR1", 13),
                ("SIGUSR1", 14),
            )
        ),
    ],
)
def test_signal_saves_at_the_end_of_the_step(start, whole, tmp_path, name, step):
    ended = start(fault={"kind": "signals", "signals": [name], "step": step})
    assert ended.code == SIGNALS[name], ended.err
    assert len(ended.errors) == 1
    assert name in ended.errors[0]
    assert "resume=auto" in ended.errors[0]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    resumed = start()
    assert f"after step {step}" in resumed.out
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.fault(8)
def test_second_signal_exits_at_once_and_resumes_exactly(start, whole, tiny, text, tmp_path):
    told = tmp_path / "told"
    process = Running(
        [*tiny, f"run_dir={tmp_path / 'run'}"],
        folder=tmp_path / "output",
        fault={"kind": "announce", "step": 13, "file": str(told)},
    )
    while not told.exists():
        time.sleep(0.05)
    process.send(signal.SIGTERM)
    time.sleep(1)
    began = time.monotonic()
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert time.monotonic() - began < 2
    assert ended.code == 143
    assert len(ended.errors) == len(ended.warnings) == 1
    assert start().code == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.fault(8)
def test_signal_before_training_ends_it(tiny, tmp_path):
    """In the middle of reading text, nothing is to be saved."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = Running([*tiny, f"task.path={pipe}"], folder=tmp_path / "output")
    time.sleep(1)
    process.send(signal.SIGINT)
    ended = process.wait(timeout=10)
    assert ended.code == 130
    assert len(ended.errors) == 1


# Two ranks: started by the first one, where how they start and end is what is tried


@pytest.fixture(scope="session")
def whole_of_two(tiny, tmp_path_factory):
    """An undisturbed run of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    ended = run([*tiny, *TWO, f"run_dir={folder / 'run'}"], folder=folder)
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.mark.fault(9)
@pytest.mark.full
@pytest.mark.parametrize(("rank", "name"), [(0, "SIGTERM"), (1, "SIGUSR1")])
def test_signal_to_one_rank_stops_all(start, whole_of_two, tmp_path, rank, name):
    fault = {"kind": "signals", "signals": [name], "step": 12, "rank": rank}
    ended = start(*TWO, fault=fault)
    assert ended.code == SIGNALS[name], ended.err
    assert ended.err.splitlines()[-1] == ended.errors[-1]
    assert len(ended.errors) == 1
    assert name in ended.errors[0]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 12
    assert start(ranks=2).code == 0
    assert_same_run(tmp_path / "run", whole_of_two)


@pytest.mark.fault(9)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.full)])
def test_signal_to_all_processes_is_told_once(tiny, tmp_path, times):
    """As a terminal and a batch system send it."""
    told = tmp_path / "told"
    process = Running(
        [*tiny, *TWO, f"run_dir={tmp_path / 'run'}"],
        folder=tmp_path / "output",
        fault={"kind": "announce", "step": 12, "file": str(told), "seconds": 5 * times},
    )
    while not told.exists():
        time.sleep(0.05)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(1)
    ended = process.wait()
    assert ended.code == 143, ended.err
    assert len(ended.warnings) == len(ended.errors) == 1, ended.err
    assert ("second signal" in ended.errors[0]) == (times == 2)
    assert process.orphans() == []


ENDS = {
    "fail": (1, "the wound hurts"),
    "refuse": (2, "this rank does not like its data"),
    "kill": (1, "rank 1 was killed by SIGKILL"),
    "leave": (1, "rank"),
}


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    "kind", ["fail", *(pytest.param(k, marks=pytest.mark.full) for k in ENDS if k != "fail")]
)
def test_lost_rank_ends_the_run_with_the_first_error_last(tiny, tmp_path, kind):
    process = Running(
        [*tiny, *TWO, f"run_dir={tmp_path / 'run'}"],
        folder=tmp_path / "output",
        fault={"kind": kind, "step": 12, "rank": 1},
    )
    ended = process.wait(timeout=60)
    code, word = ENDS[kind]
    assert ended.code == code, ended.err
    assert word in ended.err.splitlines()[-1], ended.err
    assert process.orphans() == []
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10


@pytest.mark.fault(10)
@pytest.mark.full
def test_first_rank_killed_leaves_no_orphan(tiny, tmp_path):
    fault = {"kind": "kill", "step": 12, "rank": 0}
    arguments = [*tiny, *TWO, f"run_dir={tmp_path / 'run'}"]
    process = Running(arguments, folder=tmp_path / "output", fault=fault)
    assert process.wait().code == -signal.SIGKILL
    assert process.orphans() == []


@pytest.mark.fault(10)
@pytest.mark.full
def test_rank_that_hangs_is_waited_for_so_long_and_no_longer(tiny, tmp_path):
    process = Running(
        [*tiny, *TWO, f"run_dir={tmp_path / 'run'}", "rank_timeout=15"],
        folder=tmp_path / "output",
        fault={"kind": "hang", "step": 12, "rank": 1},
    )
    ended = process.wait()
    assert ended.code == 1
    assert "rank_timeout=" in ended.err.splitlines()[-1], ended.err
    assert process.orphans() == []


@pytest.mark.fault(10)
@pytest.mark.full
def test_rank_that_fails_before_the_others_are_there(tiny, tmp_path):
    """The first rank waits for the second one, which does not even begin."""
    process = Running(
        [*tiny, *TWO, f"run_dir={tmp_path / 'run'}"],
        folder=tmp_path / "output",
        fault={"kind": "setup", "rank": 1},
    )
    ended = process.wait()
    assert ended.code == 2
    assert "no data for this rank" in ended.err.splitlines()[-1]
    assert process.orphans() == []


OTHER = {
    "seed": (["seed=7"], "seed=1 in rank 0, but seed=7 in rank 1"),
    "rate": (["optimizer.lr=0.5"], "optimizer.lr=0.001 in rank 0, but optimizer.lr=0.5 in rank 1"),
    "text": (["task.path={other}"], "the data's fingerprint="),
    "step": (["resume=never"], "the checkpoint's step=24 in rank 0, but"),
}


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "kind", ["seed", *(pytest.param(k, marks=pytest.mark.full) for k in OTHER if k != "seed")]
)
def test_ranks_that_start_differently_end_with_the_difference(tiny, text, whole, tmp_path, kind):
    other, words = tmp_path / "other.txt", text.read_text().split(" ")
    other.write_text(" ".join([words[1], words[0], *words[2:]]))
    if kind == "step":
        shutil.copytree(whole, tmp_path / "run")
    arguments, difference = OTHER[kind]
    process = Running(
        [*tiny, *TWO, f"run_dir={tmp_path / 'run'}", "resume=auto"],
        folder=tmp_path / "output",
        fault={
            "kind": "arguments",
            "rank": 1,
            "arguments": [x.format(other=other) for x in arguments],
        },
    )
    ended = process.wait()
    assert ended.code == 2, ended.err
    (line,) = ended.errors
    assert difference in line
    assert " in rank 1: all processes" in line
    assert process.orphans() == []


@pytest.mark.fault(11)
@pytest.mark.full
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_sees_the_same_samples(start, tmp_path, first, then):
    exact = ("size.dropout=0", "task.batch_size=4")
    killed = start(*exact, ranks=first, fault={"kind": "kill", "step": 13})
    assert killed.code == -signal.SIGKILL
    assert start(*exact, ranks=then).code == 0
    assert start(*exact, name="whole").code == 0
    found, expected = (
        {key: float(value) for key, value in rows(tmp_path / name).items()}
        for name in ("run", "whole")
    )
    assert found == pytest.approx(expected, rel=1e-5)
    one, other = (weights(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("run", "whole"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-7)


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "nan"},
        pytest.param({"kind": "nan", "value": "inf"}, marks=pytest.mark.full),
        {"kind": "gradient"},
        pytest.param({"kind": "nan", "rank": 0}, marks=pytest.mark.full),
        pytest.param({"kind": "nan", "rank": 1}, marks=pytest.mark.full),
        pytest.param({"kind": "gradient", "rank": 1}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_number_that_is_not_finite_stops_all_ranks_before_the_update(start, tmp_path, fault):
    ended = start(ranks=2 if "rank" in fault else 1, fault={**fault, "step": 12})
    assert ended.code == 3, ended.err
    assert len(ended.errors) == 1
    assert "step 12" in ended.errors[0]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.fault(13)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.full)])
def test_updates_that_are_not_finite_can_be_skipped_and_are_counted(start, tmp_path, ranks):
    skip = "optimizer.max_skipped_updates=1"
    fault = {"kind": "nan_once", "step": 12} | ({"rank": 1} if ranks == 2 else {})
    ended = start(skip, ranks=ranks, fault=fault)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["skipped_updates"], summary["global_step"]) == (1, 24)
    found = rows(tmp_path / "run")
    assert found[12, "train/loss"] == "nan"
    assert math.isfinite(float(found[13, "train/loss"]))
    assert all(value.isfinite().all() for value in weights(last(tmp_path)).values())
    (tmp_path / "run" / "summary.json").unlink()
    ended = start(skip, "trainer.max_steps=30", ranks=ranks, fault={**fault, "step": 26})
    assert ended.code == 3  # the count goes on after a resume
    assert "step 26" in ended.errors[0]


def last(folder):
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.fault(26)
def test_same_seed_gives_the_same_run(start, whole, tmp_path):
    assert start().code == 0
    assert_same_run(tmp_path / "run", whole)
    assert start("seed=2", name="other").code == 0
    assert rows(tmp_path / "other") != rows(whole)


@pytest.mark.fault(27)
def test_callback_that_raises_is_named_and_the_last_checkpoint_good(start, whole, tmp_path):
    ended = start(fault={"kind": "fail", "step": 12})
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert "Wound" in ended.errors[0]
    assert "the wound hurts" in ended.errors[0]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    assert start().code == 0
    assert_same_run(tmp_path / "run", whole)
