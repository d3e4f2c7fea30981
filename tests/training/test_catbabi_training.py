"""catbAbI from the command line: metrics by task, both modes, resumed in the middle of an epoch."""

import json

import pytest
import torch

from cli.building import build_parts
from cli.composition import compose_config
from fwlight.run import load_checkpoint
from fwlight.training.catbabi import QuestionAccuracy
from fwlight.types import IGNORE_INDEX, CarriedBatch
from train import main

SMALL = [
    *("task=catbabi", "task.n_stories=20", "task.batch_size=4", "task.eval_batch_size=4"),
    *("task.seq_len=24", "size.d_model=16", "size.d_head=4", "trainer.log_every_n_steps=1"),
    *("logger=none", "callbacks=none", "trainer.max_steps=8", "trainer.val_check_interval=4"),
]
TASKS = (1, 2, 3, 7, 15, 19)


def curve(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    wanted = ("train/loss", "train/grad_norm", "val/", "test/")
    return [line for line in lines if line.split(",")[1].startswith(wanted)]


def test_questions_count_by_task_and_other_targets_do_not():
    metric = QuestionAccuracy(["task_1", "task_2"])
    targets = torch.tensor([[5, 6, 7, IGNORE_INDEX], [5, 5, 5, 5]])
    kinds = torch.tensor([[0, -1, 1, -1], [1, -1, 0, 1]])
    predictions = torch.tensor([[5, 9, 8, 0], [5, 9, 9, 5]])
    for row in (0, 1):
        metric.update(predictions[[row]], targets[[row]], kinds[[row]])
    found = {name: x.item() for name, x in metric.compute().items()}
    assert found == {"acc_question": 3 / 5, "acc_task_1": 1 / 2, "acc_task_2": 2 / 3}


@pytest.mark.parametrize("mode", ["qm", "lm"])
def test_catbabi_trains_and_goes_on_in_the_middle_of_an_epoch(mode, tmp_path, capsys):
    whole = tmp_path / "whole"
    more = [f"task.mode={mode}", "callbacks.checkpoint.monitor=val/acc_task_7"]
    kept = "callbacks.checkpoint.keep_every_n_train_steps=3"
    assert main([*SMALL, *more, kept, f"run_dir={whole}"]) == 0
    summary = json.loads((whole / "summary.json").read_text())
    for split in ("val", "test"):
        found = {name for name in summary if name.startswith(f"{split}/acc")}
        assert found == {f"{split}/acc_{x}" for x in ("question", *(f"task_{n}" for n in TASKS))}
        assert all(0 <= summary[name] <= 1 for name in found)
    assert summary["val/best_acc_task_7"] >= 0
    (first, *_) = sorted((whole / "checkpoints").glob("step-*.ckpt"))
    step = load_checkpoint(first)["global_step"]
    assert step == 3
    assert main([*SMALL, *more, f"run_dir={tmp_path / 'again'}", f"resume={first}"]) == 0
    later = [line for line in curve(whole) if int(line.split(",")[0]) > step]
    assert curve(tmp_path / "again")[-len(later) :] == later

    ckpt = f"ckpt={whole / 'checkpoints' / 'last.ckpt'}"
    capsys.readouterr()
    assert main(["action=generate", ckpt, "prompt=<eos> olga", "generate.max_new_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("<eos> olga")
    assert main(["action=diagnose", ckpt, "diagnostics.capacity_draws=1"]) == 0
    assert capsys.readouterr().out.startswith("layer0: ")
    assert main(["action=test", ckpt, "task.test_batch_size=3"]) == 0


def test_state_is_carried_and_padding_leaves_no_trace():
    config = compose_config([*SMALL, "task.tasks=[1,19]"]).config
    module, data = build_parts(config)
    module.eval()
    tokens = torch.randint(2, len(data.words), (4, 9))
    ignored = torch.full_like(tokens, IGNORE_INDEX)

    def batch(x, *, begins):
        return CarriedBatch(x, ignored[:, : x.shape[1]], begins, True)

    parts = [module._carry(batch(x, begins=not i)) for i, x in enumerate(tokens.split(3, 1))]
    whole = module._carry(batch(tokens, begins=True))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    shorter = tokens.clone()
    shorter[2, 4:] = 0
    module._carry(batch(shorter, begins=True))
    (padded,) = module._evaluation_state.layers
    module._carry(batch(tokens[:, :4], begins=True))
    (alone,) = module._evaluation_state.layers
    torch.testing.assert_close(padded.S[2], alone.S[2])
    torch.testing.assert_close(padded.lstm.c[2], alone.lstm.c[2])
    kinds = torch.tensor([[0, 1, 19, 7]])
    asked = CarriedBatch(tokens, ignored, True, True, kinds=kinds)
    assert module.kinds_of(asked).tolist() == [[-1, 0, 1, 2]]
    assert "val/acc_task_19" in module.monitored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.tasks=[4]"], "made_up has no 4"),
        (["task.data=babi", "task.path=/nowhere/x"], "/nowhere/x does not exist"),
        (["task.mode=x"], "qm, lm"),
        (["model.sizes=[4,4,5]"], "s=4 and t=5 must be equal with reads=3"),
        (["model=softmax"], "memory of constant size"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main([*SMALL, *arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
