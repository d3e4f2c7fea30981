"""Whole runs of the stand-in: what is written, resumed, killed, distributed."""

import copy
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fwlight import run
from fwlight.errors import CheckpointError, ConfigError, NumericalError
from fwlight.lightning_internals import completes_update
from fwlight.run.actions import generating, testing
from fwlight.run.checkpoint_io import load_checkpoint, save_checkpoint
from tests.faults import processes
from tests.run import standin
from tests.run.standin import Settings, rows


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """As the scripts: the number of threads decides how sums are rounded."""
    run.quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(run_dir, **settings):
    """Run in this process and return the summary."""
    folder, trainer, module, data = standin.parts(Settings(run_dir=str(run_dir), **settings))
    return run.fit(trainer, module, data, folder=folder)


def script(run_dir, *, port=None, **settings):
    """Run as a process of its own; with a port as two, which meet there."""
    words = [f"{key}={value}" for key, value in {"run_dir": run_dir, **settings}.items()]
    output = run_dir.with_name(f"{run_dir.name}-output")
    program = Path(standin.__file__).resolve()
    return processes.run(
        words, folder=output, program=program, port=port, two=("devices=2",), timeout=300
    )


def bare_trainer():
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def logged(run_dir):
    """Everything in metrics.csv that does not depend on the clock."""
    return {key: value for key, value in rows(run_dir).items() if "throughput" not in key[1]}


def curve(run_dir, name):
    """What TensorBoard shows: every point once."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def timeless(summary):
    return {k: v for k, v in summary.items() if k not in ("wall_seconds", "tokens_per_second")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, single_thread):
    """An uninterrupted run: its folder and its summary."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, fit(path)


def test_run_writes_metrics_summary_and_checkpoints(whole):
    path, summary = whole
    found = rows(path)
    train = ("train/loss", "train/ppl", "train/lr", "train/grad_norm")
    for step in range(1, 31):
        assert all((step, name) in found for name in (*train, "throughput/tokens_per_second"))
    evaluated = [7, 14, 21, 28, 30]  # the last step too
    assert [s for s, name in found if name == "val/ppl"] == evaluated
    assert json.loads((path / "summary.json").read_text()) == summary
    losses = {step: float(found[step, "val/loss"]) for step in evaluated}
    best = min(losses, key=losses.get)
    for name, value in {
        "train/loss": float(found[30, "train/loss"]),
        "val/loss": losses[30],
        "val/ppl": math.exp(losses[30]),
        "val/best_loss": losses[best],
        "val/best_ppl": math.exp(losses[best]),
        "test/loss": float(found[30, "test/loss"]),
        "test/ppl": math.exp(float(found[30, "test/loss"])),
    }.items():
        assert summary[name] == pytest.approx(value, rel=1e-12)
    assert summary["val/best_step"] == best
    assert summary["tested_checkpoint"] == "best.ckpt"
    assert summary["global_step"] == 30
    assert summary["parameters"] == sum(p.numel() for p in standin.TinyLM().parameters())
    assert summary["tokens_per_second"] > 0
    assert summary["wall_seconds"] > 0
    steps = {p.name: load_checkpoint(p)["global_step"] for p in path.glob("checkpoints/*.ckpt")}
    assert steps == {"last.ckpt": 30, "best.ckpt": best}


def test_test_loss_is_that_of_the_best_checkpoint(whole):
    path, summary = whole
    best = load_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"]
    network = standin.TinyLM().eval()
    network.load_state_dict({k.removeprefix("network."): v for k, v in best.items()})
    tokens = standin.TinyData(batch_size=4).stream[60:].long()
    losses = []
    for start in range(0, len(tokens) - 1, 5):
        piece = tokens[start : start + 6]
        logits = network(piece[None, :-1])[0][0].double()
        losses += (-logits.log_softmax(-1)).gather(-1, piece[1:, None]).flatten().tolist()
    assert len(losses) == len(tokens) - 1
    assert summary["test/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_checkpoint_holds_plain_containers_only(whole):
    def check(value, where):
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) in (str, int), where
                check(inner, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner, f"{where}[]")
        else:
            kinds = (str, int, float, bool, type(None), torch.Tensor)
            assert type(value) in kinds, f"{where}: {type(value)}"

    checkpoint = load_checkpoint(whole[0] / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])  # torch's own OrderedDict
    check(checkpoint, "checkpoint")
    assert checkpoint["fwlight"] == {
        "choices": {},
        "overrides": [],
        "config": {},
        "version": "test",
    }
    assert len(checkpoint["rng"]) == 1


def test_same_seed_gives_the_same_run_and_onlookers_change_nothing(whole, tmp_path):
    fit(tmp_path, samples=0, val_every=30, every=0)
    again = logged(tmp_path)
    reference = logged(whole[0])
    assert {k: v for k, v in reference.items() if k[1].startswith("train/")} == {
        k: v for k, v in again.items() if k[1].startswith("train/")
    }


@pytest.mark.parametrize(
    ("settings", "resumed_at"),
    [
        ({"kill_at": 13}, 10),
        ({"kill_at": 18, "every": 7}, 14),  # saved exactly where it evaluates
    ],
)
def test_killed_run_resumes_bit_for_bit(tmp_path, capsys, settings, resumed_at):
    killed = script(tmp_path / "run", **settings)
    assert killed.code == -signal.SIGKILL, killed.err
    check_resumption(tmp_path, capsys, {**settings, "kill_at": 0}, resumed_at)


@pytest.mark.parametrize(
    ("settings", "resumed_at"),
    [
        ({"nan_at": 16, "every": 11, "val_every": 11}, 11),  # saved where an epoch ends
        ({"nan_at": 13, "every": 11, "val_every": 4}, 11),  # although best.ckpt is newer
        ({"nan_at": 9, "every": 11, "val_every": 4}, 8),  # best.ckpt is all there is
        ({"nan_at": 9, "every": 4, "val_every": 6, "accumulate": 2, "max_steps": 13}, 8),
        ({"nan_at": 3}, None),  # before the first checkpoint
    ],
)
def test_broken_run_resumes_bit_for_bit(tmp_path, capsys, settings, resumed_at):
    with pytest.raises(NumericalError):
        fit(tmp_path / "run", **settings)
    check_resumption(tmp_path, capsys, {**settings, "nan_at": 0}, resumed_at)


def check_resumption(tmp_path, capsys, settings, resumed_at):
    capsys.readouterr()
    summary = fit(tmp_path / "run", resume="auto", **settings)
    said = capsys.readouterr().out.splitlines()[0]
    assert ("resuming" in said) == (resumed_at is not None)
    assert resumed_at is None or said.endswith(f".ckpt after step {resumed_at}")
    whole = fit(tmp_path / "whole", **settings)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert timeless(summary) == timeless(whole)
    for name in ("train/loss", "val/ppl"):
        assert curve(tmp_path / "run", name) == curve(tmp_path / "whole", name)


def test_complete_run_says_so_and_is_tested_again(whole, tmp_path, capsys):
    path, summary = tmp_path / "copy", whole[1]
    shutil.copytree(whole[0], path)
    before, names = logged(path), {name for _, name in rows(path)}
    curves = {name: curve(path, name) for name in names}
    (path / "summary.json").unlink()
    for _ in range(2):
        again = fit(path, resume="auto")
        assert "already complete at step 30" in capsys.readouterr().out
        assert timeless(again) == timeless(summary)
    assert {name: curve(path, name) for name in names} == curves
    assert [step for step, _ in curves["test/loss"]] == [30]
    assert again["wall_seconds"] == pytest.approx(summary["wall_seconds"], rel=0.5)
    assert logged(path) == before
    assert json.loads((path / "summary.json").read_text()) == again


class Fail(Callback):
    """Raises when so many updates are made."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise ConfigError(f"step {self.step}")


@pytest.mark.parametrize("step", [0, 1])
def test_start_that_fails_before_its_first_update_leaves_nothing(tmp_path, step):
    folder, trainer, module, data = standin.parts(Settings(run_dir=str(tmp_path / "a" / "run")))
    trainer.callbacks.append(Fail(step))
    with pytest.raises(ConfigError, match=f"step {step}"):
        run.fit(trainer, module, data, folder=folder)
    assert (tmp_path / "a").exists() == (step > 0)


@pytest.mark.parametrize(
    ("per_epoch", "every", "evaluated"),
    [
        (False, 4, [4, 8, 10]),
        (False, 3, [3, 6, 9, 10]),
        (True, 2, [2, 5, 8, 10]),  # of the 11 batches of an epoch three updates are made
    ],
)
def test_accumulated_batches_are_evaluated_after_so_many_whole_updates(
    tmp_path, per_epoch, every, evaluated
):
    settings = Settings(run_dir=str(tmp_path), accumulate=4, val_every=every, max_steps=10, best=9)
    folder, trainer, module, data = standin.parts(settings)
    trainer.check_val_every_n_epoch = 1 if per_epoch else None
    summary = run.fit(trainer, module, data, folder=folder)
    found = rows(tmp_path)  # holds no step and metric twice
    assert [step for step, name in found if name == "val/loss"] == evaluated
    assert {step for step, name in found if name == "train/loss"} == set(range(1, 11))
    kept = {path.name for path in (tmp_path / "checkpoints").glob("best-*.ckpt")}
    assert kept == {f"best-{step:06d}.ckpt" for step in evaluated}
    assert summary["val/best_step"] in evaluated


def test_interval_beyond_an_epoch_of_accumulated_batches_is_refused(tmp_path):
    settings = Settings(run_dir=str(tmp_path), accumulate=4, val_every=4)
    folder, trainer, module, data = standin.parts(settings)
    trainer.check_val_every_n_epoch = 1
    with pytest.raises(ConfigError, match=r"val_check_interval=4 .* 3 updates of an epoch"):
        run.fit(trainer, module, data, folder=folder)


class StopInUpdate(Callback):
    """Does what a time limit does, between two accumulated batches of an update."""

    def __init__(self, update):
        self.update = update

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        within = not completes_update(trainer)
        trainer.should_stop |= within and trainer.global_step + 1 == self.update


@pytest.mark.fault(47)
@pytest.mark.parametrize("update", [5, 6])  # in an epoch, and its last one
def test_time_limit_within_an_update_ends_training_after_it(tmp_path, update):
    settings = {"accumulate": 4, "max_steps": 9, "val_every": 9}
    folder, trainer, module, data = standin.parts(Settings(str(tmp_path / "run"), **settings))
    trainer.callbacks.append(StopInUpdate(update))
    assert run.fit(trainer, module, data, folder=folder)["global_step"] == update
    assert (update, "val/loss") in rows(tmp_path / "run")
    fit(tmp_path / "run", resume="auto", **settings)
    fit(tmp_path / "whole", **settings)
    cut, whole = logged(tmp_path / "run"), logged(tmp_path / "whole")
    assert {k: v for k, v in cut.items() if k[0] != update or "train/" in k[1]} == whole


def test_longer_training_goes_on_exactly_and_a_new_learning_rate_is_used(tmp_path):
    shared = {"schedule": "constant", "val_every": 6}
    fit(tmp_path / "a", max_steps=17, **shared)
    fit(tmp_path / "a", max_steps=24, resume="auto", **shared)
    fit(tmp_path / "b", max_steps=24, **shared)
    first, whole = logged(tmp_path / "a"), logged(tmp_path / "b")
    assert {k: v for k, v in first.items() if k[0] != 17} == {
        k: v for k, v in whole.items() if k[0] != 17
    }
    fit(tmp_path / "a", max_steps=26, resume="auto", lr=0.5, **shared)
    assert rows(tmp_path / "a")[25, "train/lr"] == "0.5"
    assert rows(tmp_path / "a")[24, "train/lr"] == "0.01"


def test_kept_copies_are_named_by_step_and_resume_exactly(whole, tmp_path):
    fit(tmp_path / "a", keep=12)
    names = sorted(p.name for p in (tmp_path / "a" / "checkpoints").glob("step*.ckpt"))
    assert names == ["step-000012.ckpt", "step-000024.ckpt"]
    start = tmp_path / "a" / "checkpoints" / "step-000012.ckpt"
    fit(tmp_path / "b", resume=str(start))
    expected = {k: v for k, v in logged(whole[0]).items() if k[0] > 12}
    assert logged(tmp_path / "b") == expected
    fit(tmp_path / "a", resume=str(start))  # back in its own folder
    assert logged(tmp_path / "a") == logged(whole[0])


@pytest.mark.fault(47)
def test_time_limit_ends_every_start_with_evaluation_checkpoint_and_summary(tmp_path, capsys):
    limit = {"max_steps": 10**6, "max_time": "00:00:00:01", "val_every": 10**6, "resume": "auto"}
    step = 0
    for _ in range(3):
        before, summary = step, fit(tmp_path, **limit)
        step = summary["global_step"]
        assert before < step < 10**6
        assert before or summary["val/best_step"] == step
        last = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
        assert last["global_step"] == step
        assert (step, "val/loss") in rows(tmp_path)
    assert "already complete" not in capsys.readouterr().out
    # As earlier versions stored it: a budget that was used up.
    last["callbacks"]["Timer"] = {"time_elapsed": {"train": 10.0}}
    save_checkpoint(last, tmp_path / "checkpoints" / "last.ckpt")
    assert fit(tmp_path, **limit)["global_step"] > step


def test_another_number_of_threads_is_told_on_resume(tmp_path, capsys):
    fit(tmp_path, max_steps=5)
    fit(tmp_path, max_steps=10, resume="auto", schedule="constant")
    assert "threads" not in capsys.readouterr().err
    try:
        torch.set_num_threads(2)
        fit(tmp_path, max_steps=15, resume="auto", schedule="constant")
    finally:
        torch.set_num_threads(1)
    told = [line for line in capsys.readouterr().err.splitlines() if "threads" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: the checkpoint is of a run with 1 threads a process")
    assert "this one has 2" in told[0]
    assert "OMP_NUM_THREADS=1" in told[0]


def test_damaged_last_checkpoint_falls_back_and_still_resumes_exactly(whole, tmp_path, capsys):
    fit(tmp_path, keep=10)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"rubbish")
    fit(tmp_path, resume="auto", keep=10)
    assert "step-000030.ckpt" in capsys.readouterr().err
    assert logged(tmp_path) == logged(whole[0])


def test_step_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(NumericalError, match="step 8"):
        fit(tmp_path, nan_at=8)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 5
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    with pytest.raises(ConfigError, match="resume=auto"):  # released, and it holds a run
        fit(tmp_path)


def test_bf16_mixed_trains_close_to_float32(whole, tmp_path):
    summary = fit(tmp_path, precision="bf16-mixed")
    assert summary["val/loss"] == pytest.approx(whole[1]["val/loss"], rel=1e-2)
    assert summary["val/loss"] != whole[1]["val/loss"]


def test_tensorboard_shows_every_curve_and_the_samples(whole):
    events = EventAccumulator(str(whole[0]), size_guidance={"scalars": 0}).Reload()
    found = rows(whole[0])
    copies = {x for x in events.Tags()["scalars"] if x.startswith("_overview/")}
    assert copies == {
        f"_overview/{x}/{y}"
        for x, y in (
            ("train", "loss"), ("val", "loss"), ("val", "ppl"), ("test", "loss"), ("test", "ppl")
        )
    }  # fmt: skip
    assert set(events.Tags()["scalars"]) - copies == {name for _, name in found}
    for name in events.Tags()["scalars"]:
        values = {event.step: event.value for event in events.Scalars(name)}
        own = name.removeprefix("_overview/")
        expected = {step: float(value) for (step, other), value in found.items() if other == own}
        assert values == pytest.approx(expected, rel=1e-6)
    samples = events.Tensors("samples/0/text_summary")
    assert [event.step for event in samples] == [7, 14, 21, 28, 30]
    assert "_hparams_/session_end_info" in events.summary_metadata


def restored(module, data, path):
    """What an action is given of a checkpoint."""
    checkpoint = load_checkpoint(path)
    data.load_state_dict(checkpoint[type(data).__qualname__])
    run.load_weights(module, checkpoint, path)
    return run.Restored(module, data, checkpoint, str(path), "", bare_trainer)


def test_test_action_repeats_the_result_of_fit(whole, capsys):
    path, summary = whole
    _, _, module, data = standin.parts(Settings(run_dir=str(path), resume="auto"))
    result = testing.test(restored(module, data, path / "checkpoints" / "best.ckpt"))
    measured = {name: value for name, value in summary.items() if name.startswith("test/")}
    assert {"test/loss", "test/ppl", "test/tokens", "test/loss_position_1"} <= measured.keys()
    assert result == {**measured, "global_step": summary["val/best_step"]}
    assert "test/ppl" in capsys.readouterr().out


def test_generate_action_continues_the_prompt_the_same_way_for_a_seed(whole):
    _, _, module, data = standin.parts(Settings(run_dir=str(whole[0]), resume="auto"))

    def generate(seed, ckpt="last.ckpt", prompt="ab", **settings):
        options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
        of = restored(module, data, whole[0] / "checkpoints" / ckpt)
        return generating.generate(of, prompt=prompt, seed=seed, **options)["text"]

    text = generate(1)
    assert text.startswith(data.decode(data.encode("ab")) + " ")
    assert len(text.split()) == 22
    assert generate(1) == text
    assert generate(2) != text
    assert generate(1, temperature=0.0) == generate(2, temperature=0.0)
    with pytest.raises(ConfigError, match="prompt"):
        generate(1, prompt="")
    with pytest.raises(CheckpointError):
        generate(1, ckpt="none.ckpt")


def test_checkpoint_of_another_model_is_refused_in_one_line(whole):
    _, _, module, data = standin.parts(Settings(run_dir=str(whole[0]), resume="auto"))
    other = copy.deepcopy(module)
    other.network.output.bias = torch.nn.Parameter(torch.zeros(5))
    with pytest.raises(CheckpointError, match=r"another model.*output") as caught:
        restored(other, data, whole[0] / "checkpoints" / "last.ckpt")
    assert "\n" not in str(caught.value)


def test_two_ranks_give_the_losses_of_one_process(tmp_path, free_port):
    settings = {"dropout": 0.0}
    one = fit(tmp_path / "one", **settings)
    two = script(tmp_path / "two", port=free_port, **settings)
    assert two.code == 0, two.err
    reference = {k: float(v) for k, v in logged(tmp_path / "one").items()}
    found = {k: float(v) for k, v in logged(tmp_path / "two").items()}
    assert found == pytest.approx(reference, rel=1e-5, abs=1e-9)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    for name in ("val/loss", "test/loss"):
        assert summary[name] == pytest.approx(one[name], rel=1e-5)


def test_killed_run_of_two_ranks_resumes_bit_for_bit(tmp_path, free_port):
    settings = {"port": free_port, "max_steps": 18, "noise": 1}
    killed = script(tmp_path / "run", kill_at=13, **settings)
    assert killed.code == -signal.SIGKILL, killed.err
    for place, resume in (("run", "auto"), ("whole", "never")):
        ended = script(tmp_path / place, resume=resume, **settings)
        assert ended.code == 0, ended.err
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    states = load_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")["rng"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert not torch.equal(states[0]["python"]["numbers"], states[1]["python"]["numbers"])


def test_rank_whose_loss_is_not_finite_stops_all_ranks(tmp_path, free_port):
    ended = script(tmp_path / "run", port=free_port, nan_at=8, nan_rank=1)
    assert ended.code == 3
    assert ended.errors
    assert all("step 8" in line for line in ended.errors)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 5


@pytest.mark.parametrize("stops", [[30], [14, 30]])
def test_best_evaluations_are_kept_also_by_a_resumed_run(tmp_path, stops):
    for stop in stops:
        fit(tmp_path, max_steps=stop, resume="auto", schedule="constant", lr=0.3, best=2)
    losses = {step: float(v) for (step, name), v in rows(tmp_path).items() if name == "val/loss"}
    assert set(losses) == {7, 14, 21, 28, 30}
    best = sorted(losses, key=lambda step: losses[step])[:2]
    kept = {path.name: path for path in (tmp_path / "checkpoints").glob("best-*")}
    names = {f"best-{step:06d}.ckpt" for step in best}
    assert set(kept) == names | {f"{name}.sha256" for name in names}
    for step in best:
        assert load_checkpoint(kept[f"best-{step:06d}.ckpt"])["global_step"] == step
