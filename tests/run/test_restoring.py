"""What a run goes on from: the whole form of a checkpoint, held to that of a training."""

import copy

import pytest
import torch
from torch import nn

from fwlight import run
from fwlight.errors import CheckpointError
from fwlight.run.averaging import average_checkpoints
from fwlight.run.checkpoint_io import load_checkpoint, save_checkpoint
from fwlight.training.lm import LanguageModelingModule
from tests.run import standin

STEPS = 4
GONE = object()
SHA = "0" * 64


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The checkpoint of a short training."""
    run.quiet()
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, max_steps=STEPS)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def train(folder, *, module=None, **settings):
    """Train in this process."""
    settings = standin.Settings(run_dir=str(folder), samples=0, val_every=3, **settings)
    opened, trainer, built, data = standin.parts(settings)
    run.fit(trainer, module or built, data, folder=opened)


def put(content, place, value):
    """Set a part of nested containers, named by the way to it."""
    *way, last = place
    for name in way:
        content = content[name]
    if value is GONE:
        del content[last]
    else:
        content[last] = value(content[last]) if callable(value) else value


STATE = ("optimizer_states", 0, "state")
LOOP = ("loops", "fit_loop")
BIAS = ("state_dict", "network.output.bias")
CASES = {
    "moment of another shape": {(*STATE, 0, "exp_avg"): torch.zeros(3)},
    "moment of another type": {(*STATE, 0, "exp_avg"): torch.Tensor.double},
    "moment with NaN": {(*STATE, 0, "exp_avg"): lambda x: x * torch.nan},
    "second moment below 0": {(*STATE, 0, "exp_avg_sq"): lambda x: x - 1},
    "moment that is no tensor": {(*STATE, 0, "exp_avg"): None},
    "a moment missing": {(*STATE, 0, "exp_avg_sq"): GONE},
    "a moment more": {(*STATE, 0): lambda x: {**x, "max_exp_avg_sq": x["exp_avg_sq"]}},
    "states exchanged": {STATE: lambda x: {**x, 0: x[9], 9: x[0]}},
    "no optimizer state": {STATE: {}},
    "none, and listed": {STATE: {}, ("without_state",): [list(range(14))]},
    "state of one parameter missing": {(*STATE, 0): GONE},
    "state of one parameter more": {STATE: lambda x: {**x, 99: x[0]}},
    "other parameters": {("optimizer_states", 0, "param_groups", 0, "params"): [0, 1]},
    "no optimizer": {("optimizer_states",): []},
    "a scheduler more": {("lr_schedulers",): [{"last_epoch": 1}]},
    "schedulers that are no list": {("lr_schedulers",): None},
    "no callbacks": {("callbacks",): {}},
    "a clock without tokens": {("callbacks", "RunClock", "tokens"): GONE},
    "best that is no evaluation": {("callbacks", "RunCheckpoint", "best"): [1]},
    "no loops": {("loops",): GONE},
    "no fit loop": {LOOP: GONE},
    "a counter more": {(*LOOP, "epoch_progress", "total"): lambda x: {**x, "reset": 5}},
    "a counter that is text": {(*LOOP, "epoch_progress", "total", "ready"): "x"},
    "a counter that is none": {(*LOOP, "epoch_loop.batch_progress", "is_last_batch"): None},
    "another number of updates": {("global_step",): 2},
    "no position in the data": {(*LOOP, "state_dict"): {}},
    "a position that is text": {(*LOOP, "state_dict", "combined_loader"): [{"position": "x"}]},
    "a position without meaning": {(*LOOP, "state_dict", "combined_loader"): [{"position": 2}]},
    "random state cut": {("rng", 0, "torch"): lambda x: x[:100]},
    "random state that is text": {("rng", 0, "python", "numbers"): "x"},
    "no random state": {("rng",): []},
    "data without their name": {("TinyData", "name"): GONE},
    "no data": {("TinyData",): GONE},
    "another vocabulary": {
        ("TinyData",): {"vocabulary": ["a"], "vocab_hash": SHA, "fingerprint": SHA}
    },
    "another tokenizer": {
        ("TinyData",): {"tokenizer": "{}", "vocab_hash": SHA, "fingerprint": SHA}
    },
    "a fingerprint that is none": {("TinyData",): {"vocab_hash": SHA, "fingerprint": "x"}},
    "no weights": {("state_dict",): {}},
    "weights with NaN": {BIAS: lambda x: x * torch.nan},
    "infinite weights": {BIAS: lambda x: x + torch.inf},
    "weights without memory": {BIAS: lambda x: x.to("meta")},
    "a weight more": {("state_dict",): lambda x: {**x, "network.other": torch.zeros(2)}},
    "a version that is none": {("pytorch-lightning_version",): "x"},
    "metrics that are no numbers": {("metrics",): {"val/loss": "x"}},
}


@pytest.mark.fault(35)
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_of_another_form_is_refused(content, tmp_path, case):
    spoilt = copy.deepcopy(content)
    for place, value in CASES[case].items():
        put(spoilt, place, value)
    torch.save(spoilt, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path / "run", max_steps=STEPS + 2, resume=str(tmp_path / "x.ckpt"))
    code, line = run.exit_code_and_line(caught.value)
    assert code == 4
    assert str(tmp_path / "x.ckpt") in line
    assert len(line.splitlines()) == 1


@pytest.mark.fault(35)
def test_automatic_resume_falls_back_where_a_part_is_of_another_form(content, tmp_path, capsys):
    folder = tmp_path / "run"
    train(folder, max_steps=STEPS, keep=2)
    last = folder / "checkpoints" / "last.ckpt"
    spoilt = copy.deepcopy(content)
    put(spoilt, ("rng", 0, "torch"), lambda x: x[:100])
    save_checkpoint(spoilt, last)
    (folder / "checkpoints" / "step-000004.ckpt").unlink()
    (folder / "checkpoints" / "best.ckpt").unlink()
    train(folder, max_steps=STEPS + 2, resume="auto")
    assert "step-000002.ckpt" in capsys.readouterr().err
    assert load_checkpoint(last)["global_step"] == STEPS + 2


def go_on(content, folder, *, module=None, **changes):
    """Go on from a checkpoint's content; return the weights at the end."""
    folder.mkdir()
    torch.save({**content, **changes}, folder / "x.ckpt")
    settings = {"max_steps": STEPS + 2, "resume": str(folder / "x.ckpt")}
    train(folder / "run", module=module, **settings)
    return load_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")["state_dict"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.fault(35)
def test_options_of_the_optimizer_are_the_configurations_alone(content, tmp_path):
    spoilt = copy.deepcopy(content)
    for group in spoilt["optimizer_states"][0]["param_groups"]:
        group.update(maximize=True, betas=(0.0, 0.0), eps=1.0, weight_decay=9.0, amsgrad=True)
    assert same(go_on(spoilt, tmp_path / "a"), go_on(content, tmp_path / "b"))


def test_moments_may_be_laid_out_in_another_way(content, tmp_path):
    spoilt = copy.deepcopy(content)
    state = spoilt["optimizer_states"][0]["state"]
    for values in state.values():
        if values["exp_avg"].ndim == 2:
            values["exp_avg"] = values["exp_avg"].t().contiguous().t()
    assert same(go_on(spoilt, tmp_path / "a"), go_on(content, tmp_path / "b"))


class Idle(LanguageModelingModule):
    """With a parameter of which there never is a gradient."""

    def __init__(self, module):
        super().__init__(
            module.network, optimizer=module.optimizer_config, max_steps=module.max_steps
        )
        self.idle = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("listed", [True, False])
def test_parameters_without_a_gradient_need_no_state(tmp_path, listed):
    def module(max_steps):
        settings = standin.Settings(run_dir=str(tmp_path / str(max_steps)), max_steps=max_steps)
        return Idle(standin.parts(settings)[2])

    train(tmp_path / "a", module=module(STEPS), max_steps=STEPS)
    content = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    if not listed:  # as an earlier version wrote it
        del content["without_state"]
    go_on(content, tmp_path / "b", module=module(STEPS + 2))


def test_copies_of_other_models_are_not_averaged(content, tmp_path):
    save_checkpoint(content, tmp_path / "step-000001.ckpt")
    put(content := copy.deepcopy(content), BIAS, torch.zeros(3))
    save_checkpoint(content, tmp_path / "step-000002.ckpt")
    with pytest.raises(CheckpointError, match="step-000001"):
        average_checkpoints(tmp_path, last=2)
