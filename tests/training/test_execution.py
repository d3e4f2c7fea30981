"""What counts as right of a program, and a training of seconds from the command line."""

import json

import pytest
import torch

from fwlight.training.code_execution import ExecutionAccuracy
from fwlight.types import IGNORE_INDEX
from train import main

X, BLANK = IGNORE_INDEX, 1


def test_shares_of_programs_prints_and_blanks():
    metric = ExecutionAccuracy([2, 3], blank=BLANK)
    targets = torch.tensor([[1, 5, 1, 6], [1, 5, X, X], [1, 7, 1, X], [X, X, X, X]])
    predictions = targets.clone()
    predictions[0, 3] = 5  # a print
    predictions[2, 0] = 5  # a blank
    predictions[1, 2] = 3  # beyond the end
    statements = torch.tensor([2, 3, 2, 0])
    metric.update(predictions[:1], targets[:1], statements[:1])
    metric.update(predictions[1:], targets[1:], statements[1:])
    found = {name: x.item() for name, x in metric.compute().items()}
    of = pytest.approx
    assert found == {
        **{"acc_sequence": of(1 / 3), "acc_print": of(3 / 4), "acc_blank": of(4 / 5)},
        **{"acc": of(7 / 9), "acc_sequence_statements_2": 0.0, "acc_print_statements_2": of(2 / 3)},
        **{"acc_blank_statements_2": of(3 / 4), "acc_statements_2": of(5 / 7)},
        **{"acc_sequence_statements_3": 1.0, "acc_print_statements_3": 1.0},
        **{"acc_blank_statements_3": 1.0, "acc_statements_3": 1.0},
    }
    assert list(found) == metric.names


SMALL = [
    *("size.d_model=16", "size.n_layers=1", "size.n_heads=2", "size.d_head=8", "size.d_ff=16"),
    *("trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"),
    *("task.batch_size=4", "task.eval_sequences=8", "logger=none", "callbacks=none"),
]


@pytest.mark.parametrize("model", ["delta_linear", "softmax"])
def test_code_execution_trains_and_is_tested_on_longer_programs(model, tmp_path):
    task = ["task=code_execution", "task.n_statements=4", "task.test_statements=[4,7]"]
    run = tmp_path / "run"
    assert main([*task, *SMALL, f"model={model}", f"run_dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    for kind in ("acc_sequence", "acc_print", "acc_blank", "acc"):
        assert 0 <= summary[f"val/{kind}"] <= 1
        for length in (4, 7):
            assert 0 <= summary[f"test/{kind}_statements_{length}"] <= 1
    assert summary["val/best_acc_sequence"] >= 0
    out = tmp_path / "out.json"
    ckpt = f"ckpt={run}/checkpoints/last.ckpt"
    assert main(["action=test", ckpt, "task.test_statements=[12]", f"output={out}"]) == 0
    assert "test/acc_print_statements_12" in json.loads(out.read_text())


def test_listops_trains(tmp_path):
    run = tmp_path / "run"
    task = ["task=listops", "task.depth=2", "model=delta_linear", "model.short_conv=4"]
    assert main([*task, *SMALL, f"run_dir={run}"]) == 0
    assert 0 <= json.loads((run / "summary.json").read_text())["test/acc"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=code_execution", "task.n_variables=11"], "task.n_variables=11 must be at most 10"),
        (["task=code_execution", "task.data=published", "task.n_statements=9"], "100 statements"),
        (["task=code_execution", "task.conditional_assign=x"], "first_only, always"),
        (["task=listops", "task.depth=20"], "task.depth=20 must be at most 19"),
        (["task=listops", "task.operators=[MIN,ADD]"], "ADD is none of MIN"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
