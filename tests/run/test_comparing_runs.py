"""Runs side by side: what each is, what differs, and what is never ranked in silence."""

import csv
import io
import json
import os
import threading

import pytest

from cli.composition import compose_config
from fwlight.run import RunFolder, note_failure
from fwlight.runs import as_csv, as_text, find_runs, read_run
from fwlight.runs.__main__ import main
from tests.run.many_runs import in_use, make_run

SMALL = ("size=tiny", "trainer.max_steps=100")


def composed(*arguments):
    return compose_config([*SMALL, *arguments])


def runs_below(folder):
    return [read_run(path, below=folder) for path in find_runs(folder)]


def table(text):
    """The first two columns of a table for people, by run."""
    return {line.split()[0]: line.split()[1] for line in text.splitlines()[1:] if line}


@pytest.fixture
def folder(tmp_path):
    """Five language models on one text, one of each status and two that are finished."""
    one = {"fingerprint": "a" * 64}
    make_run(tmp_path / "best", composed("optimizer.lr=1e-3"), values={"val/loss": 0.5}, **one)
    make_run(tmp_path / "worse", composed("optimizer.lr=1e-2"), values={"val/loss": 3.0}, **one)
    make_run(tmp_path / "stopped", composed("model=linear"), status="stopped", step=40, **one)
    make_run(tmp_path / "failed", composed("model=linear"), status="failed", step=7, **one)
    make_run(tmp_path / "deep" / "killed", composed("seed=5"), status="killed", step=12, **one)
    return tmp_path


def test_every_run_has_its_status_and_the_line_it_failed_with(folder, capsys):
    (folder / "notes.log").write_text("error: of nobody\nmore\n")
    (folder / "seed-3.log").write_text("run_dir=x\nerror: the memory does not hold this\n")
    with in_use(folder / "deep" / "killed"):
        found = {run.name: run for run in runs_below(folder)}
    assert {name: run.status for name, run in found.items()} == {
        "best": "finished",
        "worse": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "deep/killed": "running",
        "seed-3": "failed",
    }
    assert found["failed"].error == "error: the loss of step 7 is not finite"
    assert found["seed-3"].error == "error: the memory does not hold this"
    assert found["deep/killed"].error is None
    assert (found["stopped"].step, found["stopped"].max_steps) == (40, 100)
    assert read_run(folder / "deep" / "killed").status == "stopped"
    assert main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "failed: error: the loss of step 7 is not finite" in shown
    assert "40/100" in shown


def test_what_differs_is_shown_and_what_the_options_decide_is_not(folder, capsys):
    assert main([str(folder)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["run", "status", "step", "model", "seed", "lr"]
    # linear has another map, norm and rule than delta_dpfp, which nobody asked for
    assert not {"key_norm", "update_rule", "backend", "data"} & {*head.split()}
    assert lines[0].split()[:6] == ["best", "finished", "100", "delta_dpfp", "1", "0.001"]


def test_runs_of_one_task_are_ranked_and_others_are_not(folder):
    assert list(table(as_text(runs_below(folder))))[:2] == ["best", "deep/killed"]
    assert next(iter(table(as_text(runs_below(folder), sort="val/loss")))) == "best"
    values = {"val/acc": 0.9, "val/best_acc": 0.95}
    mqar = composed("task=mqar", "callbacks.checkpoint.monitor=val/acc")
    make_run(folder / "accurate", mqar, values=values)
    make_run(folder / "blind", mqar, values={"val/acc": 0.1, "val/best_acc": 0.1})
    names = list(table(as_text(runs_below(folder))))
    assert names[:6] == sorted(names[:6])
    ranked = list(table(as_text(runs_below(folder), sort="val/best_acc")))
    assert ranked[:2] == ["accurate", "blind"]  # the highest is the best


@pytest.mark.parametrize("columns", [None, ["lr"]])
def test_different_texts_are_never_ranked_without_a_word(folder, columns):
    def shown():
        return as_text(runs_below(folder), sort="val/loss", columns=columns).splitlines()

    assert "data" not in shown()[0].split()
    # the same file has another content, and a file that was moved has not
    other = make_run(folder / "other", composed(), fingerprint="b" * 64)
    assert "data" in shown()[0].split()
    assert sum("lm stdlib aaaaaaaa" in line for line in shown()) == 5
    assert sum("lm stdlib bbbbbbbb" in line for line in shown()) == 1
    told = json.loads((other / "run.json").read_text())
    told["fingerprint"] = "a" * 64
    told["settings"]["task.path"] = "/elsewhere/text"
    (other / "run.json").write_text(json.dumps(told))
    assert "data" not in shown()[0].split()
    make_run(folder / "retrieval", composed("task=mqar"))
    assert sum("mqar" in line for line in shown()) == 1


def test_run_of_an_earlier_version_is_compared_by_its_configuration(tmp_path):
    make_run(tmp_path / "new", composed("optimizer.lr=1e-3"), fingerprint="a" * 64)
    make_run(tmp_path / "old", composed("optimizer.lr=1e-2"), status="killed", earlier=True)
    head, *lines = as_text(runs_below(tmp_path)).splitlines()
    assert head.split()[:4] == ["run", "status", "step", "lr"]
    assert "run_dir" not in head
    assert [line.split()[:2] for line in lines] == [["new", "finished"], ["old", "stopped"]]


def test_csv_has_every_difference_and_every_metric(folder, capsys):
    assert main([str(folder), "--csv"]) == 0
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["best"]["optimizer.lr"] == "0.001"
    assert float(rows["best"]["val/best_loss"]) == 0.5
    assert float(rows["deep/killed"]["val/best_loss"]) == 1.25
    assert rows["failed"]["error"].startswith("error: the loss")
    assert {row["data"] for row in rows.values()} == {"lm stdlib"}
    assert as_csv(runs_below(folder), columns=["lr"]).splitlines()[0] == "run,status,optimizer.lr"


CUT = [b"", b"{", b"\xff", b"[" * 3000, b"3", b'{"settings": 3}', b"a: : b", None]


@pytest.mark.parametrize("name", ["summary.json", "run.json", "config.yaml", "metrics.csv"])
@pytest.mark.parametrize("content", CUT)
@pytest.mark.parametrize("status", ["finished", "failed"])
def test_damaged_runs_are_listed_and_the_others_are_right(folder, capsys, name, content, status):
    damaged = folder / ("worse" if status == "finished" else "failed")
    for path in (damaged / name, damaged / "run.json"):  # so that config.yaml is asked
        path.unlink(missing_ok=True)
    if content is not None:
        (damaged / name).write_bytes(content)
    assert main([str(folder)]) == 0
    found = table(capsys.readouterr().out)
    assert found["best"] == "finished"
    assert found["stopped"] == "stopped"
    summarised = content == b'{"settings": 3}' if name == "summary.json" else status == "finished"
    assert found[damaged.name] == ("finished" if summarised else "stopped")


@pytest.mark.parametrize(
    "name", ["summary.json", "run.json", "config.yaml", "metrics.csv", ".lock"]
)
def test_pipes_in_place_of_files_are_not_waited_for(folder, name):
    (folder / "stopped" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "stopped" / name)
    found = []
    asking = threading.Thread(target=lambda: found.extend(runs_below(folder)), daemon=True)
    asking.start()
    asking.join(30)
    assert len(found) == 5


def test_looking_never_keeps_a_run_from_its_folder(tmp_path):
    make_run(tmp_path / "run", composed(), status="killed")
    stop = threading.Event()

    def look():
        while not stop.is_set():
            read_run(tmp_path / "run")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            with RunFolder.open(tmp_path / "run", resume="auto", is_rank_zero=True):
                pass
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_failure_is_kept_until_the_run_is_started_anew(tmp_path):
    make_run(tmp_path / "run", composed(), status="killed")
    with (
        pytest.raises(ZeroDivisionError) as caught,
        RunFolder.open(tmp_path / "run", resume="auto", is_rank_zero=True),
    ):
        raise ZeroDivisionError
    note_failure(caught.value, 1, "error: unexpected")
    run = read_run(tmp_path / "run")
    assert (run.status, run.error) == ("failed", "error: unexpected")
    note_failure(ValueError(), 2, "error: of no run")
    assert read_run(tmp_path / "run").error == "error: unexpected"
    with in_use(tmp_path / "run"):
        assert read_run(tmp_path / "run").status == "running"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}/nowhere"], "no folder"),
        (["{}/best/checkpoints"], "no run"),
        (["{}", "--sort", "val/lsos"], "did you mean val/loss"),
        (["{}", "--columns", "optimiser.lr"], "did you mean optimizer.lr"),
        (["{}", "--colums", "lr"], "--colums"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, words):
    assert main([argument.format(folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
