"""train.py as its users meet it: actions, exit codes, one line for a mistake, sweeps."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import cli.composition
import cli.folders
import fwlight
from cli.finished import is_finished, settings
from cli.launchers.local import cores
from cli.sweep import expand, run_sweep
from cli.sweep_progress import SweepProgress
from fwlight.errors import ConfigError
from fwlight.integrity import digest_path
from tests.faults.processes import Running, run
from tests.run.many_runs import make_run
from train import main

ROOT = Path(__file__).resolve().parent.parent
TINY = ["size=tiny", "task.batch_size=2", "task.seq_len=16", "optimizer.lr=1e-2", "logger=none"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """A file whose next word is always known."""
    path = tmp_path_factory.mktemp("text") / "a=b, c.txt"
    path.write_text("the cat sat on the mat and the dog ran off .\n" * 200, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = [*TINY, "task.data=text", f"task.path={text}", "trainer.max_steps=100"]
    assert main([*arguments, f"run_dir={folder}", "trainer.val_check_interval=30"]) == 0
    return folder


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


# Actions


def test_train_writes_the_run_folder(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["global_step"] == 100
    assert summary["test/ppl"] < 3
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["size"]["d_model"] == config["network"]["d_model"] == 32
    assert config["run_dir"] == str(trained)
    assert {"last.ckpt", "best.ckpt"} <= {path.name for path in (trained / "checkpoints").iterdir()}


def test_a_monitor_that_is_never_a_number_is_told(tmp_path, capsys):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    draw = random.Random(0)
    text = ["".join(draw.sample(letters, len(letters))) + "\n" for _ in range(20)]
    (tmp_path / "text.txt").write_text("".join(text))  # in validation no pair comes twice
    point = ["task=lm", "size=tiny", "task.data=text", f"task.path={tmp_path}/text.txt"]
    point += ["task.tokenizer=chars", "task.batch_size=4", "task.seq_len=8", "logger=none"]
    point += ["trainer.max_steps=2", "trainer.val_check_interval=1", "callbacks=none"]
    point += ["callbacks.checkpoint.monitor=val/loss_ar_hit", f"run_dir={tmp_path / 'run'}"]
    assert main(point) == 0
    told = [x for x in capsys.readouterr().err.splitlines() if "val/loss_ar_hit" in x]
    assert told == [
        "warning: no validation gave val/loss_ar_hit as a number: there is no best.ckpt, the last "
        "state is tested"
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tested_checkpoint"] == "last.ckpt"


def test_two_checkpoints_are_diagnosed_side_by_side(trained, capsys):
    best, last = (trained / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    few = ["diagnostics.report_sequences=3", "diagnostics.capacity_draws=0"]
    few.append("diagnostics.intervention_sequences=2")
    assert main(["action=diagnose", f"ckpt={best}", f"against={last}", *few]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.endswith(".ckpt:")] == [f"{best}:", f"{last}:"]
    page = (trained / "comparison.html").read_text()
    assert page.index(str(best)) < page.index(str(last)) < page.index("nats per target more than A")
    assert main(["action=diagnose", f"ckpt={best}", "against=nothing.ckpt"]) == 4
    assert "there is no checkpoint nothing.ckpt" in one_line(capsys)


def test_train_retrieval_is_tested_and_writes_no_text(tmp_path, capsys, trained):
    point = ["task=retrieval", "task.n_keys=5", "trainer.max_steps=200", "logger=none"]
    assert main([*point, f"run_dir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/loss"] < 0.1 < 0.5  # 0.5 is no answer at all
    assert summary["val/best_ppl"] is summary["val/ppl"] is None
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    assert main(["action=test", ckpt, "task.eval_sequences=7"]) == 0
    assert main(["action=test", ckpt, "task.seq_len=7"]) == 2
    capsys.readouterr()
    assert main(["action=diagnose", ckpt, "diagnostics.capacity_draws=1"]) == 0
    assert capsys.readouterr().out.startswith("layer0: healthy; load 0.0")
    report = (tmp_path / "run" / "diagnosis.html").read_text()
    assert report.index("Verdict") < report.index("1 of 1 heads") < report.index("n_keys: 5")
    other = trained / "checkpoints" / "best.ckpt"
    assert main(["action=diagnose", ckpt, f"against={other}"]) == 2
    assert "best.ckpt is of task=lm" in one_line(capsys)
    capsys.readouterr()
    assert main(["action=generate", ckpt, "prompt=x"]) == 2
    assert "has none" in capsys.readouterr().err


def test_train_recall_summarises_every_slice_and_answers_a_prompt(tmp_path, capsys):
    sizes = ["task.vocab_size=20", "task.seq_len=16", "task.n_pairs=[1,3]", "size=tiny"]
    short = ["trainer.max_steps=4", "task.eval_sequences=8", "task.batch_size=4", "logger=none"]
    arguments = ["task=mqar", "model=deltanet", *sizes, *short, f"run_dir={tmp_path / 'run'}"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for split in ("val", "test"):
        names = ("loss", "acc", "acc_pairs_1", "acc_pairs_3")
        assert all(f"{split}/{name}" in summary for name in names)
    # 2 layers of 2 heads of 16 x 16, and 3 positions of q, k and v
    assert summary["state_size"] == 2 * (2 * 16 * 16 + 3 * 3 * 2 * 16)
    capsys.readouterr()
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    asked = ["action=generate", ckpt, "prompt=3 12 3", "generate.max_new_tokens=1"]
    assert main(asked) == 0
    assert capsys.readouterr().out.split()[:3] == ["3", "12", "3"]


def test_train_refuses_a_folder_that_holds_a_run(trained, text, capsys):
    arguments = [*TINY, "task.data=text", f"task.path={text}", f"run_dir={trained}"]
    assert main(arguments) == 2
    assert "resume=auto" in one_line(capsys)
    assert main([*arguments, "resume=auto", "size.d_ff=16", "trainer.max_steps=100"]) == 2
    line = one_line(capsys)
    assert "size.d_ff=16" in line
    assert "size.d_ff=64" in line


def test_test_takes_model_and_data_from_the_checkpoint(trained, tmp_path):
    summary = json.loads((trained / "summary.json").read_text())
    output = tmp_path / "test.json"
    checkpoint = trained / "checkpoints" / summary["tested_checkpoint"]
    assert main(["action=test", f"ckpt={checkpoint}", f"output={output}"]) == 0
    assert json.loads(output.read_text())["test/loss"] == summary["test/loss"]


def test_generate_continues_a_prompt(trained, tmp_path, capsys):
    checkpoint = f"ckpt={trained}/checkpoints/best.ckpt"
    capsys.readouterr()
    greedy = ["generate.temperature=0", "generate.max_new_tokens=6"]
    assert main(["action=generate", checkpoint, "prompt=the cat", *greedy]) == 0
    written = capsys.readouterr().out.strip()
    assert written == "the cat sat on the mat and the"
    prompt, output = tmp_path / "in", tmp_path / "out"
    prompt.write_text("the cat\n", encoding="utf-8")
    files = [f"input={prompt}", f"output={output}"]
    assert main(["action=generate", checkpoint, *files, *greedy]) == 0
    assert output.read_text(encoding="utf-8").strip() == written
    assert capsys.readouterr().out == ""


def test_checkpoint_alone_generates_and_is_tested_on_another_text(trained, text, tmp_path, capsys):
    ckpt = f"ckpt={trained}/checkpoints/best.ckpt"
    summary = json.loads((trained / "summary.json").read_text())
    other, output = tmp_path / "other.txt", tmp_path / "test.json"
    other.write_text("the cat sat on the dog .\n" * 30)
    moved = Path(text).rename(tmp_path / "moved.txt")
    try:
        assert main(["action=generate", ckpt, "prompt=the cat"]) == 0
        assert main(["action=test", ckpt, f"task.test={other}", f"output={output}"]) == 0
        found = json.loads(output.read_text())
        assert found["test/loss"] > summary["test/loss"]
        assert found["tested_text"].startswith(f"{other}, test split, 240 tokens, 0.00% of")
        assert found["tested_text"].endswith("; not the checkpoint's own")
        assert main(["action=test", ckpt, f"task.path={moved}", f"output={output}"]) == 0
        found = json.loads(output.read_text())
        assert found["test/loss"] == summary["test/loss"]
        assert found["tested_text"].endswith("; the checkpoint's own")
        capsys.readouterr()
        assert main(["action=diagnose", ckpt]) == 2
        assert "does not exist; task.test=FILE gives another" in one_line(capsys)
    finally:
        moved.rename(text)


@pytest.fixture
def reads(monkeypatch) -> Callable[[Path], tuple[int, int]]:
    """How often a file was hashed, and unpacked, since the fixture was made."""
    seen: dict[str, list[str]] = {"hashed": [], "unpacked": []}
    digest, load = hashlib.file_digest, torch.load

    def watched_digest(file, *arguments):
        seen["hashed"].append(str(file.name))
        return digest(file, *arguments)

    def watched_load(file, **options):
        seen["unpacked"].append(str(file))
        return load(file, **options)

    monkeypatch.setattr(hashlib, "file_digest", watched_digest)
    monkeypatch.setattr(torch, "load", watched_load)
    return lambda path: (seen["hashed"].count(str(path)), seen["unpacked"].count(str(path)))


@pytest.mark.parametrize("action", ["test", "generate", "diagnose", "translate"])
def test_action_reads_its_checkpoint_once(trained, tmp_path, action, reads):
    ckpt = tmp_path / "x.ckpt"
    if action == "translate":
        shutil.copy(ROOT / "tests" / "compatibility" / "0.1" / "translation.ckpt", ckpt)
        digest_path(ckpt).write_text(f"{hashlib.sha256(ckpt.read_bytes()).hexdigest()}  x.ckpt\n")
    else:
        for path in (trained / "checkpoints").glob("last.ckpt*"):
            shutil.copy(path, tmp_path / path.name.replace("last", "x"))
    (tmp_path / "in").write_text("the cat\n")
    given = {"generate": [f"input={tmp_path}/in"], "translate": [f"input={tmp_path}/in"]}
    quick = ["diagnostics.capacity_draws=0", "diagnostics.report_sequences=1"]
    quick += ["generate.max_new_tokens=2", f"output={tmp_path}/out"]
    assert main([f"action={action}", f"ckpt={ckpt}", *given.get(action, []), *quick]) == 0
    assert reads(ckpt) == (1, 1)
    assert (tmp_path / "out").stat().st_size > 0


@pytest.mark.parametrize("resume", ["auto", "{}", "damaged", "complete"])
def test_resume_reads_its_checkpoint_once(trained, text, tmp_path, resume, reads, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last = run / "checkpoints" / "last.ckpt"
    steps = 100 if resume == "complete" else 102
    arguments = [*TINY, "task.data=text", f"task.path={text}", f"trainer.max_steps={steps}"]
    arguments += ["trainer.val_check_interval=30", "callbacks=none"]
    if resume == "{}":
        shutil.move(run, tmp_path / "other")
        last = tmp_path / "other" / "checkpoints" / "last.ckpt"
    elif resume == "damaged":
        last.write_bytes(last.read_bytes()[:-1] + b"x")
        arguments.append("callbacks.checkpoint.save_best=false")
    how = last if resume == "{}" else "auto"
    assert main([*arguments, f"run_dir={run}", f"resume={how}"]) == 0
    assert "resuming" in capsys.readouterr().out
    if resume == "damaged":
        assert reads(last) == (1, 0)
        last = run / "checkpoints" / "best.ckpt"
    assert reads(last) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["action=test", "ckpt=/nowhere/x.ckpt"], 4, "/nowhere/x.ckpt"),
        (["action=test", "ckpt=https://example.org/x.ckpt"], 4, "URL"),
        (["action=generate", "ckpt={run}/checkpoints/last.ckpt", "input=/nowhere"], 2, "/nowhere"),
        (["action=generate", "ckpt={run}/config.yaml", "prompt=a"], 4, "config.yaml"),
        (["action=test", "ckpt={run}/checkpoints/last.ckpt", "size.d_ff=8"], 2, "size.d_ff=64"),
        (["task.data=text", "task.path=/nowhere.txt", "run_dir={new}"], 2, "/nowhere.txt"),
        (["task.data=textt", "run_dir={new}"], 2, "stdlib"),
        (
            ["task.data=text", "task.path={text}", "model.feature_map.nu=99", "run_dir={new}"],
            2,
            "nu=99",
        ),
        (["run_dir=/dev/null/x"], 5, "/dev/null/x"),
    ],
    ids=str,
)
def test_train_mistakes_have_exit_codes(trained, text, tmp_path, capsys, arguments, code, word):
    places = {"run": trained, "text": text, "new": tmp_path / "new"}
    assert main([*TINY, *(argument.format(**places) for argument in arguments)]) == code
    assert word in one_line(capsys)


def test_train_traceback_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("FWLIGHT_DEBUG", "1")
    assert main(["size=huge"]) == 2
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.strip().splitlines()[-1].startswith("error: size=huge")


# The command line


def test_help_names_every_option(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for group, options in cli.folders.groups().items():
        assert not options or f"{group}={'|'.join(options)}" in shown


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fwlight {fwlight.__version__}\n"


def test_cfg_prints_what_would_run(capsys):
    assert main(["--cfg", "size=tiny", "prompt=${x}: 1"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["prompt"] == "${x}: 1"
    assert config["network"]["d_ff"] == 64


@pytest.mark.parametrize("arguments", [["size.d_modle=3"], ["model=delta"], ["-m", "seed=1"]])
def test_mistakes_answer_at_once_and_without_torch(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys, train\nprint(train.main({arguments}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == ["2", "False"]
    assert len(done.stderr.strip().splitlines()) == 1
    # processor time: what the wall clock shows depends on what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_command_exit_code_reaches_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "trainer.max_steps=many"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: trainer.max_steps=many is not a whole number\n"
    assert list(tmp_path.iterdir()) == []


def test_processes_of_torchrun_tell_one_mistake_once(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(ROOT / "train.py"), "trainer.max_steps=many"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: trainer.max_steps=many is not a whole number"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tasks_of_srun_tell_one_mistake_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in (("JOB_ID", "7"), ("STEP_ID", "0"), ("STEP_NUM_TASKS", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)

    def told(argument: str) -> list[str]:
        for rank in "01":
            monkeypatch.setenv("SLURM_PROCID", rank)
            assert main([argument]) == 2
        return capsys.readouterr().err.splitlines()

    many = ["error: trainer.max_steps=many is not a whole number"]
    assert told("trainer.max_steps=many") == many
    assert told("trainer.max_steps=more") == [many[0].replace("many", "more")]
    for file in tmp_path.iterdir():
        os.utime(file, (0, 0))  # the step was a script, and runs it again later
    assert told("trainer.max_steps=many") == many
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a shell in a job
    assert told("trainer.max_steps=many") == many * 2


def test_train_that_was_stopped_early_is_complete(tmp_path, capsys):
    point = ["task=retrieval", "task.n_keys=4", "model=linear", "logger=none"]
    point += ["callbacks.early_stopping.stopping_threshold=0.2", "trainer.val_check_interval=20"]
    assert main([*point, f"run_dir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["global_step"] < 100_000
    assert main([*point, "resume=auto", f"run_dir={tmp_path}"]) == 0
    assert "already complete" in capsys.readouterr().out
    again = json.loads((tmp_path / "summary.json").read_text())
    for name in ("val/loss", "val/best_loss", "test/loss", "tested_checkpoint", "global_step"):
        assert again[name] == summary[name], name


def test_machine_with_slurm_installed_gets_no_hints(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    point = ["task=retrieval", "task.n_keys=4", "callbacks=none", "trainer.max_steps=3"]
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    point.append(f"run_dir={tmp_path / 'run'}")
    ended = run(point, folder=tmp_path / "output", environment=path)
    assert (ended.code, ended.err) == (0, "")


def test_train_without_callbacks(tmp_path):
    point = ["task=retrieval", "task.n_keys=4", "callbacks=none", "trainer.max_steps=3"]
    assert main([*point, f"run_dir={tmp_path}"]) == 0


# Sweeps


def test_sweep_runs_every_combination(tmp_path):
    points = expand(["size=tiny", "seed=range(1,4)", "model=linear,softmax", f"run_dir={tmp_path}"])
    assert len(points) == 6
    assert {(p.composition.config["seed"], p.composition.choices["model"]) for p in points} == {
        (seed, model) for seed in (1, 2, 3) for model in ("linear", "softmax")
    }
    assert points[0].folder == tmp_path / "seed-1__model-linear"
    assert all(p.composition.config["resume"] == "auto" for p in points)
    assert all(p.composition.choices["size"] == "tiny" for p in points)


def test_sweep_of_an_experiment(tmp_path, monkeypatch):
    copy = tmp_path / "conf"
    shutil.copytree(cli.folders.CONF, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (copy / "experiment").mkdir(exist_ok=True)
    (copy / "experiment" / "two.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: linear\n"
        "sweep: {task.seq_len: 'range(10,31,10)', seed: '1,2'}\n"
    )
    monkeypatch.setattr(cli.folders, "CONF", copy)
    points = expand(["experiment=two", "seed=5"])
    assert [p.composition.config["task"]["seq_len"] for p in points] == [10, 20, 30]
    assert {p.composition.config["seed"] for p in points} == {5}
    assert {p.composition.choices["model"] for p in points} == {"linear"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["trainer=ddp", "seed=1,2"], "trainer=ddp"),
        (["trainer.devices=2", "seed=1,2"], "trainer.devices=2"),
        (["seed=1"], "nothing to sweep"),
        (["model=linear,delta"], "model=delta"),
        (["size.d_ff=8,x"], "size.d_ff=x"),
    ],
)
def test_sweep_mistakes_are_found_before_the_first_run(arguments, word, tmp_path):
    with pytest.raises(ConfigError, match=word):
        expand([*arguments, f"run_dir={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_sweep_of_curves_drops_points_that_the_command_line_makes_equal(capsys):
    arguments = ["experiment=retrieval_capacity", "task.n_keys=40", "seed=1", "-m", "--cfg"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9  # one a curve
    assert len({line.split("run_dir=")[1] for line in lines}) == 9
    assert all("task.n_keys=40" in line and "seed=1" in line for line in lines)


def test_sweep_names_points_that_are_too_long_for_a_folder(tmp_path):
    keys = [
        "callbacks.checkpoint.keep_every_n_train_steps",
        "callbacks.checkpoint.every_n_train_steps",
        "callbacks.text_samples.max_new_tokens",
        "trainer.accumulate_grad_batches",
        "trainer.check_val_every_n_epoch",
    ]
    long = [f"{key}=1000000000,2000000000" for key in keys]
    names = [p.name for p in expand([*long, "seed=1,2", f"run_dir={tmp_path}"])]
    assert len(set(names)) == 2**6
    for name in names:
        assert len(f"{name}.log".encode()) <= 255
        assert all(key in name for key in ("keep_every_n", "max_new", "accumulate", "seed-"))
    assert expand(["seed=1,2", f"run_dir={tmp_path}"])[0].name == "seed-1"
    wide = "\u00e4" * 100
    for found in expand(
        [f"task.data='{wide}',x", f"task.source_lang='{wide}',x", "task=translation"]
    ):
        assert len(f"{found.name}.log".encode()) <= 255


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("optimizer.lr=interval(1e-4,1e-2)", "range"),
        ("model=glob(*)", "range"),
        ("seed=range(1,1)", "no values"),
        ("seed=range(0,1,0)", "seed=range"),
        ("seed=range(0,1000000000000)", "more than"),
        ("seed=range(0,1000) task.seq_len=range(1,1000)", "runs"),
        ("seed=choice()", "seed=choice"),
    ],
)
def test_sweep_of_no_or_too_many_values_is_refused(argument, word):
    with pytest.raises(ConfigError, match=word):
        expand(argument.split())


def test_sweep_counts_cores_where_the_system_bounds_them_not(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert cores() >= 1


@pytest.fixture
def done(tmp_path):
    """A folder that holds what a run with these arguments leaves, and a function that makes it."""

    def write(*arguments: str, earlier: bool = False) -> Path:
        (one, _) = expand(["size=tiny", "seed=1,2", f"run_dir={tmp_path}", *arguments])
        one.folder.mkdir(exist_ok=True)
        (one.folder / "config.yaml").write_text(one.composition.yaml(), encoding="utf-8")
        summary = {"global_step": one.composition.config["trainer"]["max_steps"]}
        if not earlier:
            summary["settings"] = settings(one.composition)
        (one.folder / "summary.json").write_text(json.dumps(summary))
        return one.folder

    write.finished = lambda *arguments: expand(
        ["size=tiny", "seed=1,2", f"run_dir={tmp_path}", *arguments]
    )[0].finished()
    return write


@pytest.mark.fault(34)
@pytest.mark.parametrize("earlier", [False, True])
def test_sweep_takes_a_summary_for_its_own_settings_only(done, earlier):
    done(earlier=earlier)
    assert done.finished()
    assert done.finished("logger=tensorboard", "rank_timeout=5", "callbacks.progress=null")
    for change in (
        "trainer.max_steps=3000",
        "optimizer.lr=0.5",
        "model/feature_map=elu",
        "model.short_conv=2",
        "model=linear",
        "task=mqar",
    ):
        assert not done.finished(change), change
    done("model/feature_map=elu", earlier=earlier)
    assert not done.finished("model/feature_map=relu")  # which differs in nothing but its class
    done("task=translation", earlier=earlier)
    assert not done.finished("task=translation", "model@encoder=softmax")


@pytest.mark.fault(34)
@pytest.mark.parametrize("earlier", [False, True])
def test_sweep_stays_finished_where_keys_came_or_classes_were_renamed(done, earlier):
    folder = done(earlier=earlier)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"]["short_conv"], config["translate"]
    config["model"]["feature_map"]["_target_"] = "fwlight.old.Name"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if not earlier:
        summary = json.loads((folder / "summary.json").read_text())
        assert not any("_target_" in key for key in summary["settings"])
        for key in [key for key in summary["settings"] if key.startswith("translate.")]:
            del summary["settings"][key]
        del summary["settings"]["model.short_conv"]
        (folder / "summary.json").write_text(json.dumps(summary))
    assert done.finished()
    assert not done.finished("model.short_conv=2")  # what did not exist then was not run with


@pytest.mark.fault(34)
def test_sweep_does_not_believe_a_configuration_later_than_an_earlier_versions_summary(done):
    folder = done(earlier=True)
    (point,) = [
        p for p in expand(["size=tiny", "seed=1,2", "trainer.max_steps=3000"]) if "1" in p.name
    ]
    config = {**point.composition.config, "run_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert not done.finished("trainer.max_steps=3000")


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 3000, b"3", b'{"settings": 3}', b"a: b: c"]
)
@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_sweep_point_whose_files_are_damaged_is_open(done, name, content):
    folder = done(earlier=True)
    (folder / name).write_bytes(content)
    assert not done.finished()
    (folder / name).unlink()
    assert not done.finished()


@pytest.mark.parametrize("step", ["NaN", "Infinity", "true", '"9000"', "1e9"])
def test_sweep_counts_the_steps_of_an_earlier_versions_summary_in_whole_numbers(done, step):
    folder = done(earlier=True)
    (folder / "summary.json").write_text(f'{{"global_step": {step}}}')
    assert not done.finished()


def test_sweep_takes_true_for_another_setting_than_1(done):
    summary = json.loads((done() / "summary.json").read_text())
    assert summary["settings"]["seed"] == 1
    summary["settings"]["seed"] = True
    (done() / "summary.json").write_text(json.dumps(summary))
    assert not done.finished()


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_sweep_point_with_a_pipe_for_a_file_is_open_and_not_waited_for(done, name):
    file = done(earlier=True) / name
    file.unlink()
    os.mkfifo(file)
    said = []
    asking = threading.Thread(target=lambda: said.append(done.finished()), daemon=True)
    asking.start()
    asking.join(30)
    assert said == [False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=softmax", "task.eval=carried"], ["task.eval=carried", "constant size"]),
        (["trainer.limit_test_batches=1e-5"], ["limit_test_batches"]),
        (["callbacks.checkpoint.monitor=val/bleu"], ["val/bleu is no metric", "val/loss"]),
        (["output=/nowhere/x/y"], ["/nowhere/x/y"]),
    ],
)
def test_what_would_fail_after_the_training_is_told_before(
    text, tmp_path, capsys, arguments, words
):
    data = [*TINY, "task.data=text", f"task.path={text}", "trainer.max_steps=2", "callbacks=none"]
    assert main([*data, *arguments, f"run_dir={tmp_path / 'run'}", "optimizer.warmup_steps=0"]) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not [*tmp_path.rglob("*.ckpt")]


def test_training_that_ends_before_its_average_is_tested_as_it_is(text, tmp_path, capsys):
    data = [
        *TINY,
        "task.data=text",
        f"task.path={text}",
        "callbacks=none",
        "trainer.max_steps=60000",
    ]
    keep = "callbacks.checkpoint.keep_every_n_train_steps"
    run = tmp_path / "run"
    limit = ["trainer.max_steps=60000", "trainer.max_time=00:00:00:01", f"{keep}=20000"]
    limit += ["callbacks.checkpoint.average_last=3"]
    assert main([*data, *limit, f"run_dir={run}"]) == 0
    assert "average_last=3, but the training ended with 0 kept copies" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["tested_checkpoint"] == "last.ckpt"
    assert not (run / "checkpoints" / "averaged.ckpt").exists()


@pytest.mark.fault(34)
def test_summary_goes_when_training_goes_on_with_other_settings(text, tmp_path, capsys):
    arguments = [*TINY, "task.data=text", f"task.path={text}", "callbacks=none"]
    arguments += [f"run_dir={tmp_path / 'run'}", "resume=auto", "optimizer.warmup_steps=0"]
    summary = tmp_path / "run" / "summary.json"
    assert main([*arguments, "trainer.max_steps=4"]) == 0
    first = json.loads(summary.read_text())
    assert first["settings"]["trainer.max_steps"] == 4
    # Complete: nothing would be trained with what is new, and the summary would say it was.
    for change in ("optimizer.lr=1", "trainer.max_steps=3"):
        assert main([*arguments, "trainer.max_steps=4", change]) == 2
        assert "complete at step 4" in capsys.readouterr().err
        assert json.loads(summary.read_text()) == first
    # Goes on, and does not get to the end.
    longer = [*arguments, "trainer.max_steps=8"]
    assert main([*longer, "optimizer.lr=1e30"]) == 3
    assert not summary.exists()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optimizer"]["lr"] == 1e30
    assert main(longer) == 0
    assert json.loads(summary.read_text())["settings"]["trainer.max_steps"] == 8


@pytest.mark.slow
def test_sweep_runs_and_skips_what_is_finished(text, tmp_path, capsys):
    arguments = [*TINY, "task.data=text", f"task.path={text}", "trainer.max_steps=2"]
    arguments += ["seed=1,2", f"run_dir={tmp_path}"]
    assert run_sweep(arguments) == 0
    summaries = [tmp_path / f"seed-{seed}" / "summary.json" for seed in (1, 2)]
    first = [path.stat().st_mtime_ns for path in summaries]
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1 of 2 runs done") for line in told)
    assert told[-4].split()[:2] == ["run", "status"]
    assert {line.split()[0] for line in told[-3:-1]} == {"seed-1", "seed-2"}
    assert told[-1] == f"val/best_ppl against seed: {tmp_path / 'sweep.png'}"
    assert run_sweep(arguments) == 0
    assert "2 of them finished" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in summaries] == first
    # another configuration in the same place is not finished
    assert not any(point.finished() for point in expand([*arguments, "trainer.max_steps=3"]))


def test_sweep_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("cli.sweep_progress.time.monotonic", lambda: now[0])
    steps = "trainer.max_steps=100"
    points = expand(["size=tiny", steps, "seed=range(1,5)", f"run_dir={tmp_path}"])
    progress = SweepProgress(4, finished=1)
    make_run(points[1].folder, points[1].composition, status="killed", step=50)
    for point in points[1:3]:
        progress.started(point.folder)
    assert progress.line() == "1 of 4 runs done, 2 running"
    now[0] = 60.0
    shutil.rmtree(points[1].folder)
    make_run(points[1].folder, points[1].composition, status="killed", step=100)
    # Half a run in a minute, and two are left.
    assert progress.line() == "1 of 4 runs done, 2 running, about 4 min 00 s left"
    now[0] = 120.0
    progress.ended(points[1].folder, "seed-2: done")
    assert capsys.readouterr().out.splitlines() == [
        "seed-2: done",
        "2 of 4 runs done, 1 running, about 8 min 00 s left",
    ]


@pytest.mark.parametrize("part", ["", "@alternate.kernel"])
def test_run_from_before_a_slot_stays_finished_unless_another_choice_is_asked_for(tmp_path, part):
    model = ["model@alternate=softmax"] if part else ["model=softmax"]
    now = cli.composition.compose_config(model)
    before = settings(now)
    assert before.pop(f"model/kernel{part}") == "dot"
    (tmp_path / "summary.json").write_text(json.dumps({"settings": before}))
    assert is_finished(tmp_path, now)
    assert not is_finished(
        tmp_path, cli.composition.compose_config([*model, f"model/kernel{part}=rbf"])
    )
    if not part:
        hybrid = [*model, "model@alternate=deltanet"]
        assert not is_finished(tmp_path, cli.composition.compose_config(hybrid))


@pytest.mark.fault(33)
@pytest.mark.slow
def test_runs_of_a_killed_sweep_stop_and_are_saved(text, tmp_path):
    arguments = [*TINY, "task.data=text", f"task.path={text}", "trainer.max_steps=1000000"]
    folders = [tmp_path / f"seed-{seed}" for seed in (1, 2)]
    command = ["-m", *arguments, "seed=1,2", f"run_dir={tmp_path}"]
    sweep = Running(command, folder=tmp_path / "output")
    try:
        _until(lambda: all((folder / "metrics.csv").exists() for folder in folders))
    finally:
        sweep.send(signal.SIGKILL)
        sweep.wait()
    logs = [tmp_path / f"{folder.name}.log" for folder in folders]
    _until(lambda: all("stopped by SIGTERM" in log.read_text() for log in logs))


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
