"""What docs/extending.md says: its files are written, its commands run tiny, and resumed."""

import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import get_type_hints

import lightning
import pytest
import torch
import yaml

from cli import folders
from cli.composition import compose_config
from cli.stored import recompose
from cli.trainer_schema import Trainer
from fwlight.errors import ConfigError
from tests.exactness import identical
from train import main

PAGE = (folders.CONF.parent / "docs" / "extending.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[2:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]
TEXT = ["task.data=text", "task.path=text.txt", "task.batch_size=2", "task.seq_len=8"]
TINY = [*TEXT, "task.min_count=1", "size=tiny", "trainer.val_check_interval=2"]
TINY += ["trainer.log_every_n_steps=1", "diagnostics.every_n_steps=2", "optimizer.warmup_steps=1"]
TINY += ["optimizer.schedule=constant"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with the page's files and a text."""
    for path, code in re.findall(r"\n`(my_[\w/.]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code, encoding="utf-8")
    (tmp_path / "text.txt").write_text("the old man saw many ships .\n" * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


def command(words: str) -> list[str]:
    """The first of the page's command lines with these words, without its folder of a run."""
    found = next(arguments for arguments in COMMANDS if words in " ".join(arguments))
    return [argument for argument in found if not argument.startswith("run_dir=")]


def one_line(capsys) -> str:
    (line,) = (x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning: "))
    assert line.startswith("error: ")
    return line


def rows(run: str) -> list[str]:
    """What is in metrics.csv, but for what is measured of time and memory."""
    lines = Path(run, "metrics.csv").read_text().splitlines()
    return sorted(line for line in lines if "throughput" not in line)


def last(run: str) -> dict:
    return torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)


def assert_lives(*arguments: str, two="trainer.max_steps=2", four="trainer.max_steps=4") -> None:
    """Train to step 2, and on to step 4; hold that to a training that was never interrupted."""
    every = [*TINY, *arguments]
    if "callbacks=none" not in arguments:
        every.append("callbacks.text_samples.max_new_tokens=2")
    assert main([*every, four, "run_dir=whole"]) == 0
    assert main([*every, two, "run_dir=parts"]) == 0
    assert main([*every, four, "run_dir=parts", "resume=auto"]) == 0
    assert rows("parts") == rows("whole")
    ended = [last(run) for run in ("parts", "whole")]
    for part in ("state_dict", "optimizer_states"):
        assert identical(*(x[part] for x in ended))
    assert torch.equal(*(x["rng"][0]["torch"] for x in ended))


def test_every_command_of_the_page_composes(place):
    for arguments in COMMANDS:
        if "-m" in arguments or "ckpt" not in " ".join(arguments):
            assert main([*arguments, "--cfg"]) == 0


# The Trainer


def test_every_argument_of_lightnings_trainer_is_known():
    known = set(get_type_hints(Trainer))
    assert known == set(inspect.signature(lightning.Trainer).parameters)


def test_reports_of_a_profiler_are_in_the_run(place):
    arguments = [*TINY, "callbacks=none", "trainer.max_steps=2"]
    assert main([*arguments, *command("profiler=simple"), "run_dir=profiled"]) == 0
    assert main([*arguments, "run_dir=plain"]) == 0
    assert rows("profiled") == rows("plain")
    report = Path("profiled", "profiler", "fit-simple.txt").read_text()
    assert "run_training_batch" in report


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_resume_exactly(place, precision):
    assert_lives(f"trainer.precision={precision}", "logger=none")  # figures take their time
    dtypes = {x.dtype for x in last("parts")["state_dict"].values() if x.is_floating_point()}
    assert dtypes == {torch.bfloat16 if precision == "bf16-true" else torch.float64}


def test_epochs_end_a_training_that_goes_on_with_more_of_them(place, capsys):
    three = ["trainer.limit_train_batches=3", "trainer.val_check_interval=3", "callbacks=none"]
    epochs = [f"trainer.max_epochs={n}" for n in (1, 2)]
    assert_lives(*three, two=epochs[0], four=epochs[1])
    assert last("parts")["global_step"] == 6
    assert "trainer.max_steps=2000 ends the training too" in capsys.readouterr().err
    again = [*TINY, *three, epochs[1], "run_dir=parts", "resume=auto"]
    assert main(again) == 0
    assert "already complete at step 6" in capsys.readouterr().out
    assert main([*again, "optimizer.lr=1"]) == 2
    assert "is complete at step 6" in one_line(capsys)


def test_an_evaluation_ends_a_training_also_where_more_epochs_were_asked_for(place):
    asked = ["trainer.min_epochs=3", "trainer.max_steps=3", "run_dir=run", "callbacks=none"]
    assert main([*TINY, *asked]) == 0
    assert json.loads(Path("run", "summary.json").read_text())["val/best_step"] in (2, 3)
    assert any(row.startswith("3,val/loss") for row in rows("run"))


def test_the_operation_that_made_a_nan_is_named(place, capsys):
    wrong = ["optimizer.lr=1e30", "trainer.detect_anomaly=true", "model.norm=pre"]
    assert main([*TINY, *wrong, "callbacks=none", "trainer.max_steps=9", "run_dir=run"]) == 3
    one_line(capsys)


# A folder of one's own


def test_own_callback_goes_on_with_what_it_keeps(place):
    assert_lives(*command("callbacks=[default,largest]"), "logger=none")
    assert sum("largest/grad_norm" in row for row in rows("parts")) == 4
    assert last("parts")["callbacks"]["Largest"]["norm"] > 0
    config = yaml.safe_load(Path("parts", "config.yaml").read_text())
    assert config["callbacks"]["largest"]["every_n_steps"] == 1
    # Without the folder a checkpoint is used all the same: callbacks belong to a start.
    assert main(["action=test", "ckpt=parts/checkpoints/last.ckpt"]) == 0


def test_own_callback_that_keeps_what_no_checkpoint_holds_is_named(place, capsys):
    code = (place / "my_parts.py").read_text()
    (place / "my_parts.py").write_text(code.replace('"norm": self.norm', '"norm": Path()'))
    arguments = [*command("callbacks=[default,largest]"), *TINY, "trainer.max_steps=2"]
    assert main([*arguments, "run_dir=run"]) == 2
    assert "Largest.norm is not plain data" in one_line(capsys)


def test_own_loggers_go_on(place):
    assert_lives(*command("logger=[lines,csv]"))
    lines = [json.loads(x) for x in Path("parts", "lines", "lines.json").read_text().splitlines()]
    assert [line["optimizer.lr"] for line in lines if "step" not in line] == [1e-3, 1e-3]
    losses = [line["step"] for line in lines if "train/loss" in line]
    assert losses == [1, 2, 3, 4]
    assert any("samples/0" in line for line in lines)
    written = sorted(Path("parts", "csv").glob("version_*/metrics.csv"))
    assert [path.parent.name for path in written] == ["version_0", "version_1"]
    assert "train/loss" in written[1].read_text()
    assert not Path("parts", "tensorboard").exists()


def test_own_logger_that_raises_is_one_warning(place, capsys):
    code = (place / "my_parts.py").read_text()
    (place / "my_parts.py").write_text(code.replace("indent=self.indent", "indent=self.nothing"))
    arguments = [*command("logger=[lines,csv]"), *TINY, "trainer.max_steps=2", "callbacks=none"]
    assert main([*arguments, "run_dir=run"]) == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "logger.lines" in x)
    assert line.startswith("warning: ")
    assert "nothing" in line


def test_start_that_comes_to_nothing_leaves_no_logger_behind(place):
    arguments = [*command("logger=[lines,csv]"), *TINY, "trainer.limit_test_batches=1e-9"]
    assert main([*arguments, "run_dir=run"]) == 2
    assert not Path("run").exists()


def test_own_feature_map_lives_and_is_asked_for_by_name(place, capsys):
    own = command("feature_map=squares")
    assert_lives(*own, "callbacks=none")
    stored = last("parts")["fwlight"]
    assert stored["choices"]["model/feature_map"] == "squares"
    assert "my_conf" not in json.dumps([stored["choices"], stored["overrides"]])
    diagnose = [x.replace("runs/squares", "parts") for x in command("action=diagnose")]
    capsys.readouterr()
    assert main([*diagnose, "diagnostics.capacity_draws=0"]) == 0
    assert main(diagnose[2:]) == 2
    told = "model/feature_map=squares, which is no option here: give --config-dir FOLDER"
    assert told in one_line(capsys)
    assert main([*own[2:], *TINY, "run_dir=parts", "resume=auto"]) == 2
    assert "model/feature_map=squares is no option" in (line := one_line(capsys))
    assert "--config-dir FOLDER" in line


@pytest.mark.slow
def test_own_feature_map_is_swept(place, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(folders.CONF.parent))  # whatever checkout is installed
    assert main([*command("-m"), *TINY, "trainer.max_steps=2", "run_dir=both"]) == 0
    found = {path.parent.name for path in Path("both").glob("*/summary.json")}
    assert found == {"model_feature_map-squares", "model_feature_map-dpfp"}


def test_help_and_points_of_a_sweep_know_the_folder(place, capsys):
    assert main(["--config-dir=my_conf", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"model/feature_map=.*\|squares\b", shown)
    assert "logger=csv|lines|none|tensorboard|wandb" in shown
    assert main([*command("-m"), "--cfg"]) == 0
    points = capsys.readouterr().out.splitlines()
    assert all(shlex.split(x)[0] == f"--config-dir={place}/my_conf" for x in points)
    assert main(["--help"]) == 0
    assert "squares" not in capsys.readouterr().out
    assert str(place) not in sys.path


def test_own_group_is_added_and_asked_for_by_name(place):
    (place / "my_conf" / "augment").mkdir()
    (place / "my_conf" / "augment" / "strong.yaml").write_text("swap: 0.5\n")
    with folders.own(["my_conf"]):
        composed = compose_config(["augment=strong", "augment.swap=0.25"])
        assert composed.choices["augment"] == "strong"
        assert recompose(composed.record(), []).config["augment"] == {"swap": 0.25}
    with pytest.raises(ConfigError, match="augment=strong, which is no option here"):
        recompose(composed.record(), [])


def test_checkpoint_names_options_that_are_listed_only(place):
    (place / "my_conf" / "evil.yaml").write_text("_target_: os.system\n")
    stored = compose_config(["size=tiny"]).record()
    for choice in ({"model": "../evil"}, {"../my_conf": "evil"}, {"model": "/evil"}):
        with folders.own(["my_conf"]), pytest.raises(ConfigError, match="no option here"):
            recompose({**stored, "choices": choice}, [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["size=tiny", "--config-dir"], "--config-dir needs a folder"),
        (["--config-dir", "nowhere"], "nowhere is no folder"),
        (["--config-dir=text.txt"], "text.txt is no folder"),
        (["--config-dir=empty"], "empty holds no options"),
        (["--config-dir=taken"], "has the name of"),
        (["--config-dir=my_conf", "--config-dir=my_conf"], "has the name of"),
        (["--config-dir=my_conf", "callbacks=largst"], "did you mean largest?"),
        (["--config-dir=missing", "callbacks=none_such"], "_target_=no_module.X cannot"),
    ],
)
def test_mistakes_with_a_folder_are_one_line(place, capsys, arguments, told):
    (place / "empty" / ".git").mkdir(parents=True)
    for path, text in (("taken/size/tiny", ""), ("missing/callbacks/none_such", "x:\n")):
        (place / path).parent.mkdir(parents=True)
        (place / f"{path}.yaml").write_text(text and f"{text}  _target_: no_module.X\n")
    assert main([*TEXT, "run_dir=run", *arguments]) == 2
    assert told in one_line(capsys)


# Weights & Biases


def test_wandb_that_is_not_installed_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    assert main([*TINY, "logger=wandb", "run_dir=run"]) == 2
    assert one_line(capsys).startswith("error: logger.wandb: ")
    assert not Path("run").exists()


def test_wandb_goes_on_in_the_same_run(place):
    pytest.importorskip("wandb")
    arguments = command("logger.wandb.offline=true")
    assert_lives(*arguments)
    assert main([*TINY, "trainer.max_steps=4", "run_dir=without"]) == 0
    assert rows("without") == rows("whole")  # it draws no random numbers of training's
    of_parts, of_whole = (Path(run, "wandb", "id").read_text() for run in ("parts", "whole"))
    assert of_parts != of_whole
    starts = [path.name for path in Path("parts", "wandb").glob("offline-run-*")]
    assert len(starts) == 2
    assert all(name.endswith(f"-{of_parts}") for name in starts)
