"""Language models with AWD-LSTM's regularisation: what is dropped, cut, averaged, and resumed."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.testing import assert_close

from cli.building import build
from cli.composition import compose_config
from fwlight.errors import CheckpointError, ConfigError, DataError
from fwlight.mixers.lstm import LSTM
from fwlight.models.dropout import locked_dropout, word_dropout
from fwlight.run import load_checkpoint
from fwlight.run.actions import Restored, testing
from fwlight.run.checkpoint_form import check_form
from fwlight.run.moving_average import MovingAverage
from fwlight.training.adam_then_sgd import AdamThenSGD
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig, set_learning_rates
from fwlight.types import CarriedBatch
from tasks.lanes import TrainLanes
from tests.exactness import identical
from train import main

NETWORK = [
    *("task=lm", "model=lstm", "model@alternate=fwm_lstm_lm", "model.alternate_every=2"),
    *("size=tiny", "size.d_head=4", "model.d_inner=24", "model.positions=none", "size.dropout=0"),
]
DROPPED = [f"locked_dropout.{x}=0.3" for x in ("words", "input", "hidden", "output")]
DROPPED += ["model.weight_dropout=0.5", "alternate.weight_dropout=0.5"]
TRAINED = [
    *(*NETWORK, *DROPPED, "loss.activation_weight=2", "loss.temporal_activation_weight=1"),
    *("task.data=text", "task.batch_size=8", "task.seq_len=12", "task.min_count=1"),
    *("task.context=carried", "task.lengths=drawn", "task.eval=carried", "logger=none"),
    *("callbacks=none", "trainer.log_every_n_steps=1", "optimizer.schedule=constant"),
    *("optimizer=adam_then_sgd", "optimizer.warmup_steps=0", "trainer.max_steps=8"),
    *("optimizer.algorithm.sgd_lr=0.5", "optimizer.weight_decay=1e-3"),
    *("task.eval_batch_size=2", "callbacks.checkpoint.save_best=false"),
    "callbacks.checkpoint.keep_every_n_train_steps=1",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a few words to learn from , again and again\n" * 40, encoding="utf-8")
    return f"task.path={path}"


def fit(folder: Path, *arguments: str) -> dict:
    assert main([*TRAINED, *arguments, f"run_dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def kept(folder: Path, step: int) -> dict:
    return load_checkpoint(folder / "checkpoints" / f"step-{step:06d}.ckpt")


def curve(folder: Path, *, after: int = 0) -> list[str]:
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [line for line in lines if int(line.split(",")[0]) > after]


def network(*arguments: str, words: int = 11) -> nn.Module:
    torch.manual_seed(0)
    return build("network", compose_config(arguments).config["network"], vocab_size=words)


# What is dropped


def test_locked_dropout_drops_the_same_at_every_token_and_words_wherever_they_stand():
    torch.manual_seed(1)
    y = locked_dropout(torch.ones(3, 50, 40), 0.25, training=True)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not torch.equal(y[0], y[1])
    words = torch.randint(200, (4, 60))
    x = word_dropout(torch.ones(4, 60, 5), words, 0.5, n_words=200, training=True)
    for word in words.unique():
        assert len(x[words == word].unique()) == 1
    assert 0.3 < (x == 0).double().mean() < 0.7
    for dropped in (locked_dropout(y, 0.0, training=True), locked_dropout(y, 0.5, training=False)):
        assert dropped is y


@pytest.mark.parametrize("forget_bias", [None, 1.0])
@pytest.mark.parametrize("apart", [False, True])
def test_hidden_to_hidden_weights_are_dropped_once_for_all_tokens(forget_bias, apart):
    torch.manual_seed(0)
    mixer = LSTM(6, 1, 1, forget_bias=forget_bias, weight_dropout=0.5)
    x, starts = torch.randn(2, 9, 6), torch.zeros(2, 9, dtype=torch.bool)
    starts[:, [0, 4]] = True
    options = {"starts": starts} if apart else {}
    torch.manual_seed(3)
    y, state = mixer(x, **options)
    y.sum().backward()
    torch.manual_seed(3)
    weight = mixer.lstm.weight_hh_l0
    dropped = F.dropout(weight, 0.5)
    assert torch.equal(weight.grad == 0, dropped == 0)
    plain = mixer.eval()(x, **options)[0]
    with torch.no_grad():
        weight.copy_(dropped)
    expected, after = mixer(x, **options)
    assert_close(y, expected)
    assert_close(state.c, after.c)
    assert not torch.allclose(y, plain)


def test_evaluation_drops_nothing_and_options_of_zero_draw_nothing():
    tokens = torch.randint(11, (2, 7))
    with_all, without = network(*NETWORK, *DROPPED), network(*NETWORK)
    state = torch.get_rng_state()
    expected = without(tokens)[0]
    assert_close(with_all.eval()(tokens)[0], expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(with_all.train()(tokens)[0], expected)
    assert [block.attention.state_size for block in without.blocks] == [48, 2 * 32 + 4**3]


def test_only_lstms_have_another_width_between_them():
    with pytest.raises(ValueError, match="d_inner=24 is a width between LSTMs"):
        network("task=lm", "size=tiny", "model=delta_dpfp", "model.d_inner=24")


# What is added to the loss


def test_activations_are_penalised_and_not_logged():
    parts = [*NETWORK, "loss.activation_weight=2", "loss.temporal_activation_weight=3"]
    config = compose_config([*parts, "locked_dropout.output=0.5"]).config
    torch.manual_seed(0)
    made = build("network", config["network"], vocab_size=11)
    module = build("module", config["module"], made)
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    ids = torch.randint(11, (2, 8))
    batch = CarriedBatch(ids[:, :-1], ids[:, 1:], True, False)
    torch.manual_seed(5)
    loss = module.training_step(batch, 0)
    torch.manual_seed(5)
    h, _ = made.last_layer(batch.inputs)
    dropped = locked_dropout(h, 0.5, training=True)
    nll = made.nll(dropped, batch.targets).mean()
    slowness = (h[:, 1:] - h[:, :-1]).square().mean()
    expected = nll + 2 * dropped.square().mean() + 3 * slowness
    assert_close(loss, expected, check_dtype=False)
    assert float(module._sums[0] / module._sums[1]) == pytest.approx(nll.item(), rel=1e-6)
    one = CarriedBatch(ids[:, :1], ids[:, 1:2], True, False)  # no step from token to token
    assert module.training_step(one, 0).isfinite()


# What segments are


def lanes(seed: int = 1, **options) -> TrainLanes:
    defaults = {"batch_size": 2, "seq_len": 20, "carried": True, "lengths_seed": seed}
    return TrainLanes(torch.arange(2 * 1500 + 1), **{**defaults, **options})


def test_drawn_segments_are_whole_passes_of_other_lengths_each():
    loader = lanes()
    batches = [batch for _ in range(6) for batch in loader]
    assert len(batches) == 6 * len(loader)
    passes: list[list[CarriedBatch]] = []
    for batch in batches:
        if batch.begins:
            passes.append([])
        passes[-1].append(batch)
        assert batch.continues == (batch.inputs[0, -1] != 1499)
    assert len(passes) > 3
    for read in passes[:-1]:
        assert torch.equal(torch.cat([b.inputs for b in read], 1), torch.arange(3000).view(2, -1))
        assert all(torch.equal(b.targets, b.inputs + 1) for b in read)
        assert all(b.rate == b.inputs.shape[1] / 20 for b in read[:-1])
        assert all(5 <= b.inputs.shape[1] <= 30 for b in read[:-1])
    lengths = [[b.inputs.shape[1] for b in read] for read in passes]
    assert lengths[0] != lengths[1]
    assert lengths[0] != [b.inputs.shape[1] for b in lanes(seed=2)][: len(lengths[0])]
    mean = sum(map(sum, lengths[:-1])) / sum(map(len, lengths[:-1]))
    assert mean == pytest.approx(19, abs=1)
    assert abs(len(loader) - 1500 / mean) < 6


def take(loader: TrainLanes, n: int) -> list[CarriedBatch]:
    """Return the next batches, over as many iterations as that takes."""
    found: list[CarriedBatch] = []
    while len(found) < n:
        found += islice(loader, n - len(found))
    return found


@pytest.mark.parametrize("options", [{}, {"epoch_limit": 3}, {"num_workers": 1}])
def test_drawn_segments_go_on_at_any_number(options):
    whole = take(lanes(), 100) if "epoch_limit" not in options else take(lanes(**options), 100)
    for taken in (1, 70, 90):  # within the first pass, near its end, in the second
        loader, again = lanes(**options), lanes(**options)
        take(loader, taken)
        again.load_state_dict(loader.state_dict())
        for found, expected in zip(take(again, 10), whole[taken:], strict=False):
            assert torch.equal(found.inputs, expected.inputs)
            assert found[2:4] == expected[2:4]
            assert found.rate == expected.rate
    with pytest.raises(DataError, match=r"task\.lengths_seed=1, now it is task\.lengths_seed=2"):
        lanes(seed=2).load_state_dict(lanes().state_dict())


# How weights are updated, averaged and resumed


def test_updates_where_weights_are_averaged_are_gradient_descent():
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 2), torch.randn(6, 3, 2)
    config = OptimizerConfig(lr=0.1, schedule="constant")

    def trained(averages_after: int) -> list[Tensor]:
        weight = nn.Parameter(start.clone())
        options = {"params": [weight], "weight_decay": 0.01, "initial_lr": 0.1}
        optimizer = AdamThenSGD([options], lr=0.1, sgd_lr=0.5)
        found = []
        for n, gradient in enumerate(gradients, 1):
            averages = n > averages_after
            set_learning_rates(optimizer.param_groups, config, n, max_steps=6, averages=averages)
            weight.grad = gradient.clone()
            optimizer.step()
            found.append(weight.detach().clone())
        return found

    adam, both = trained(6), trained(3)
    assert identical(adam[:3], both[:3])
    weight = nn.Parameter(both[2].clone())
    reference = torch.optim.ASGD([weight], lr=0.5, lambd=0.0, t0=0, weight_decay=0.01)
    for gradient, found in zip(gradients[3:], both[3:], strict=True):
        weight.grad = gradient.clone()
        reference.step()
        assert_close(found, weight.detach())


def test_a_training_with_everything_resumes_bit_for_bit(text, tmp_path):
    given = (text, "optimizer.average_from=5", "trainer.val_check_interval=4")
    whole = fit(tmp_path / "whole", *given)
    for step in (3, 5, 6):  # before averaging, at its begin, after it
        folder = tmp_path / str(step)
        again = fit(
            folder, *given, f"resume={tmp_path / 'whole/checkpoints'}/step-00000{step}.ckpt"
        )
        for name in ("state_dict", "optimizer_states", "metrics", "average", "carried", "rng"):
            ours, theirs = kept(folder, 8).get(name), kept(tmp_path / "whole", 8).get(name)
            if name == "rng":  # type checks draw of Python's numbers
                ours, theirs = ours[0]["torch"], theirs[0]["torch"]
            assert identical(ours, theirs), name
        assert curve(folder) == curve(tmp_path / "whole", after=step)
        assert again["test/loss"] == whole["test/loss"]
    # The average is the mean of the weights since, is tested, and rates follow lengths.
    steps = {n: kept(tmp_path / "whole", n) for n in (5, 6, 7, 8)}
    assert "average" not in steps[5]
    for name, average in steps[8]["average"].items():
        mean = sum(steps[n]["state_dict"][name].double() for n in (6, 7, 8)) / 3
        assert_close(average.double(), mean, rtol=1e-5, atol=1e-7)
    rates = [float(x.split(",")[2]) for x in curve(tmp_path / "whole") if ",train/lr," in x]
    peaks = [1e-3] * 5 + [0.5] * 3
    shares = [rate / peak * 12 for rate, peak in zip(rates, peaks, strict=True)]
    assert shares == pytest.approx([round(x) for x in shares])
    assert len({round(x) for x in shares}) > 2


def test_averaging_begins_where_validation_gets_no_better_also_after_a_resume():
    torch.manual_seed(0)
    options = {"average_from": "stalled", "average_patience": 2, "schedule": "constant"}
    module = TrainingModule(nn.Linear(2, 2), optimizer=OptimizerConfig(**options), max_steps=9)
    trainer = Mock(spec=Trainer, global_step=0, ckpt_path=None)
    callback, stored = MovingAverage(), {}
    callback.on_fit_start(trainer, module)
    since = []
    # 4.5 is below the lowest of those more than two before it, 5; 4.2 is above 4.
    for n, loss in enumerate([5.0, 4.0, 3.0, 4.5, 4.2, 1.0], 1):
        module.latest["val/loss"], trainer.global_step = loss, 10 * n
        callback.on_validation_start(trainer, module)
        callback.on_validation_end(trainer, module)
        since.append(module.average_since)
        # A checkpoint is written, and training goes on from it.
        stored = {"callbacks": {"MovingAverage": callback.state_dict()}}
        callback.on_save_checkpoint(trainer, module, stored)
        check_form(stored)
        assert ("average" in stored) == (n > 4)
        callback = MovingAverage()
        callback.load_state_dict(stored["callbacks"]["MovingAverage"])
        callback.on_load_checkpoint(trainer, module, stored)
        module.average_since = None
        callback.on_fit_start(trainer, module)
    assert since == [None] * 4 + [50, 50]
    assert callback.averages
    for wrong in ({"since": -1, "losses": []}, {"since": 1, "losses": ["x"]}, {"since": 1}):
        with pytest.raises(ValueError, match="MovingAverage"):
            check_form({"callbacks": {"MovingAverage": wrong}})
    callback.load_state_dict({"since": 1, "losses": []})
    callback.on_load_checkpoint(trainer, module, {"average": {}})
    with pytest.raises(CheckpointError, match="its average has no"):
        callback.on_fit_start(trainer, module)


@pytest.mark.parametrize("options", [{"average_from": -1}, {"average_patience": 0}])
def test_an_average_that_would_never_be_one_is_refused(options):
    with pytest.raises(ValueError, match=f"optimizer.{next(iter(options))}"):
        OptimizerConfig(**{"average_from": "stalled", **options})


def test_averaging_waits_for_a_loss_that_there_is():
    config = OptimizerConfig(average_from="stalled", schedule="constant")
    module = TrainingModule(nn.Linear(2, 2), optimizer=config, max_steps=9)
    module.monitored = ("val/reward",)
    with pytest.raises(ConfigError, match="stalled waits for val/loss"):
        MovingAverage().on_fit_start(Mock(spec=Trainer, ckpt_path=None), module)


# What is tested


def test_temperature_is_looked_for_until_it_gets_no_better(monkeypatch):
    asked = []

    def evaluate(of):
        assert of.data.test_split == "valid"
        asked.append(of.temperature)
        of.module.latest["test/loss"] = (of.temperature - 0.913) ** 2

    data, module = SimpleNamespace(test_split="test"), SimpleNamespace(latest={})
    of = Mock(spec=Restored, data=data, module=module, temperature=None)
    module.temper = lambda value: setattr(of, "temperature", value)
    monkeypatch.setattr(testing, "_evaluate", evaluate)
    assert testing._best_temperature(of) == 0.91
    assert asked == pytest.approx([0.8 + 0.01 * n for n in range(13)])
    assert (data.test_split, of.temperature) == ("test", 1.0)


def test_temperature_is_given_or_the_best_for_validation(text, tmp_path):
    fit(tmp_path / "run", text, "trainer.max_steps=2", "optimizer.average_from=1")
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"

    def scored(*arguments: str) -> dict:
        out = tmp_path / "out.json"
        assert main(["action=test", ckpt, *arguments, f"output={out}"]) == 0
        return json.loads(out.read_text())

    chosen = scored("test.temperature=valid")
    assert chosen["test/loss"] == scored(f"test.temperature={chosen['temperature']}")["test/loss"]
    assert "temperature" not in (plain := scored())
    assert plain["test/loss"] != chosen["test/loss"]
    valid = [
        scored("task.test_split=valid", f"test.temperature={chosen['temperature'] + x}")
        for x in (0, 0.01)
    ]
    assert valid[0]["test/loss"] <= valid[1]["test/loss"]
