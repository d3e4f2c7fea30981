"""Whatever updates weights, a resumed training is the uninterrupted one: through train.py."""

import json
import re
from pathlib import Path

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.errors import ConfigError
from fwlight.run import load_checkpoint
from fwlight.training.groups import parameters_by_kind
from fwlight.training.optim import OptimizerConfig, build_optimizer
from tests.exactness import identical
from train import main

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    *("task=lm", "size=tiny", "size.n_layers=1", "task.data=text", "task.batch_size=4"),
    *("task.seq_len=8", "task.min_count=1", "logger=none", "callbacks=none"),
    *("trainer.log_every_n_steps=1", "trainer.val_check_interval=2", "trainer.max_steps=4"),
    *("optimizer.warmup_steps=1", "model=gated_deltanet", "size.dropout=0.2"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a few words to learn from , again and again\n" * 80, encoding="utf-8")
    return f"task.path={path}"


def fit(folder: Path, *arguments: str) -> dict:
    """Train; return the summary."""
    assert main([*SMALL, *arguments, f"run_dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def last(folder: Path) -> dict:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


def curve(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[1:]


def rates(folder: Path, name: str = "train/lr") -> list[float]:
    """Return the learning rate of every update."""
    found = (line.split(",") for line in curve(folder))
    return [float(value) for _, metric, value in found if metric == name]


def resumed(folder: Path, *arguments: str) -> Path:
    """Train for 4 updates; hold a training that goes on from the second to it; return its run."""
    kept = "callbacks.checkpoint.keep_every_n_train_steps=1"
    whole = fit(folder / "whole", *arguments, kept)
    middle = folder / "whole" / "checkpoints" / "step-000002.ckpt"
    again = fit(folder / "again", *arguments, f"resume={middle}")
    for name in ("state_dict", "optimizer_states", "metrics", "average"):
        assert identical(last(folder / "again").get(name), last(folder / "whole").get(name))
    later = [line for line in curve(folder / "whole") if int(line.split(",")[0]) > 2]
    assert curve(folder / "again") == later
    for name in ("test/loss", "val/best_loss", "tested_checkpoint"):
        assert again[name] == whole[name]
    return folder / "whole"


def test_warmup_stable_decay(text, tmp_path):
    run = resumed(tmp_path, text, "optimizer.schedule=wsd", "optimizer.decay_steps=2")
    assert rates(run) == pytest.approx([1e-3, 1e-3, 5e-4, 0.0])


# Optimisers and their groups


def network(*arguments: str, **sizes: int):
    torch.manual_seed(0)
    config = compose_config(["size=tiny", "size.n_layers=1", *arguments]).config
    return build("network", config["network"], vocab_size=11, **sizes)


def kinds(module) -> dict[str, set[str]]:
    """Return the last two parts of the names of every kind."""
    return {
        kind: {".".join(name.split(".")[-2:]) for name, _ in named}
        for kind, named in parameters_by_kind(module).items()
    }


def test_parameters_are_of_the_kinds_that_they_are():
    found = kinds(network("task=lm", "model=gated_deltanet", "model.norm=pre"))
    assert {name.split(".")[-1] for name in found["gates"]} == {"A_log", "dt_bias"}
    assert found["embeddings"] == {"embedding.weight"}
    assert found["others"] == {"short_conv.weight"}
    assert {"in_proj.weight", "out_proj.weight", "0.weight", "3.weight"} == found["matrices"]
    assert {"attention_norm.weight", "attention_norm.bias", "output.bias"} <= found["vectors"]
    answers = kinds(network("task=code_execution", "model=delta_rnn", n_outputs=5))
    assert answers["embeddings"] == {"embedding.weight", "output.weight"}


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay():
    module = network("task=lm", "model=kda")
    optimizer = build_optimizer(module, OptimizerConfig(weight_decay=0.1))
    placed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(placed) == len(set(placed)) == len(list(module.parameters()))
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.0 if parameter.ndim < 2 else 0.1), name


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"algorithm": torch.optim.Rprop, "weight_decay": 0.1}, "Rprop takes no weight_decay"),
        ({"groups": {"vectors": {"momentum": 0.5}}}, "AdamW takes no momentum"),
        (
            {"algorithm": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=-1.0)},
            "optimizer.algorithm: Invalid momentum value: -1.0",
        ),
        ({"algorithm": lambda groups: None}, "optimizer.algorithm: "),
        ({"algorithm": lambda groups, lr: lr}, "optimizer.algorithm makes a float, no Optimizer"),
    ],
)
def test_algorithm_that_does_not_take_its_options_is_told(config, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(**config))


def test_options_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.groups\.biases: choose of matrices"):
        OptimizerConfig(groups={"biases": {"lr": 1.0}})


@pytest.fixture
def own_optimizer(tmp_path) -> list[str]:
    """The optimiser of CONTRIBUTING.md, in a folder of one's own."""
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## An optimiser")[1]
    lines = recipe.split("```yaml\n")[1].split("```")[0].splitlines()
    text = "\n".join(line.removeprefix("   ") for line in lines)
    (tmp_path / "mine" / "optimizer" / "mine.yaml").write_text(text, encoding="utf-8")
    return [f"--config-dir={tmp_path / 'mine'}", "optimizer=mine"]


def test_optimizer_of_ones_own_with_two_rates(text, tmp_path, own_optimizer):
    run = resumed(tmp_path, text, *own_optimizer, "optimizer.schedule=linear")
    assert rates(run) == pytest.approx([2e-3, 2e-3 * 2 / 3, 2e-3 / 3, 0.0])
    assert rates(run, "train/lr_embeddings") == pytest.approx([x / 4 for x in rates(run)])
    (stored,) = last(run)["optimizer_states"]
    groups = {group["name"]: group for group in stored["param_groups"]}
    assert groups["embeddings"]["weight_decay"] == 0.01
    assert groups["matrices"]["weight_decay"] == groups["gates"]["weight_decay"] == 0.0
    assert groups["gates"]["betas"] == [0.9, 0.98]
    assert "mu_product" in stored["state"][0]  # NAdam's


def test_sgd(text, tmp_path):
    run = resumed(tmp_path, text, "optimizer=sgd", "optimizer.algorithm.momentum=0.8")
    states = last(run)["optimizer_states"][0]["state"].values()
    assert {tuple(state) for state in states} == {("momentum_buffer",)}


def test_muon(text, tmp_path):
    run = resumed(tmp_path, text, "optimizer=muon", "optimizer.groups.matrices.lr=0.02")
    (stored,) = last(run)["optimizer_states"]
    for group in stored["param_groups"]:
        hidden = group["name"] == "matrices"
        for number in group["params"]:
            assert ("momentum_buffer" in stored["state"][number]) == hidden
            assert ("exp_avg_sq" in stored["state"][number]) != hidden
    assert rates(run, "train/lr_matrices") == pytest.approx([20 * x for x in rates(run)])


def test_state_of_an_optimizer_is_found_by_the_names_of_parameters(text, tmp_path):
    """Groups may be cut otherwise than in the checkpoint; options are told to have changed."""
    fit(tmp_path / "a", text, "callbacks.checkpoint.keep_every_n_train_steps=2")
    start = tmp_path / "a" / "checkpoints" / "step-000002.ckpt"
    content = torch.load(start, weights_only=True)
    (stored,) = content["optimizer_states"]
    named = {
        name: number
        for group in stored["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    # As version 0.1 wrote it: two groups, matrices first, and no names.
    weights = content["state_dict"]
    order = sorted((n for n in weights if n in named), key=lambda n: weights[n].ndim < 2)
    matrices = sum(weights[name].ndim >= 2 for name in order)
    numbers = list(range(len(order)))
    options = {"lr": stored["param_groups"][0]["lr"], "betas": (0.9, 0.999), "eps": 1e-8}
    stored["state"] = {i: stored["state"][named[name]] for i, name in enumerate(order)}
    stored["param_groups"] = [
        {**options, "params": numbers[:matrices]},
        {**options, "params": numbers[matrices:]},
    ]
    torch.save(content, tmp_path / "old.ckpt")
    fit(tmp_path / "b", text, f"resume={tmp_path / 'old.ckpt'}")
    for name in ("state_dict", "optimizer_states"):
        assert identical(last(tmp_path / "b")[name], last(tmp_path / "a")[name])


# The moving average


def test_moving_average_is_evaluated_tested_and_resumed(text, tmp_path):
    decay = "optimizer.ema_decay=0.6"
    run = resumed(tmp_path, text, decay, "optimizer.lr=0.01")
    kept = run / "checkpoints" / "step-000002.ckpt"
    middle, end = load_checkpoint(kept), last(run)
    assert end["average"].keys() <= end["state_dict"].keys()
    # The test is of the average, also by hand, and validations are.
    (tmp_path / "no").mkdir()
    torch.save({k: v for k, v in end.items() if k != "average"}, tmp_path / "no" / "x.ckpt")
    valid, raw = (
        scored(path, "task.test_split=valid", output=tmp_path / "out.json")["test/loss"]
        for path in (run / "checkpoints" / "last.ckpt", tmp_path / "no" / "x.ckpt")
    )
    summary = json.loads((run / "summary.json").read_text())
    assert valid == pytest.approx(summary["val/loss"], rel=1e-6)
    assert abs(raw - valid) > 1e-4
    best = scored(run / "checkpoints" / summary["tested_checkpoint"], output=tmp_path / "out.json")
    assert best["test/loss"] == pytest.approx(summary["test/loss"], rel=1e-6)
    # The formula, from the second update to the fourth.
    third = load_checkpoint(run / "checkpoints" / "step-000003.ckpt")["state_dict"]
    for name, average in middle["average"].items():
        expected = average.double()
        for n, weights in ((3, third), (4, end["state_dict"])):
            d = min(0.6, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * weights[name].double()
        torch.testing.assert_close(end["average"][name].double(), expected, rtol=1e-5, atol=1e-7)
    # One that does not fit the network is a damaged checkpoint.
    middle["average"]["network.output.bias"] = torch.zeros(3)
    torch.save(middle, tmp_path / "bad.ckpt")
    bad = [f"resume={tmp_path / 'bad.ckpt'}", f"run_dir={tmp_path / 'bad'}"]
    assert main([*SMALL, text, decay, *bad]) == 4


def test_moving_average_of_a_last_state_is_tested_and_may_begin_and_end_later(text, tmp_path):
    last_state = "callbacks.checkpoint.save_best=false"
    keep = "callbacks.checkpoint.keep_every_n_train_steps=2"
    fit(tmp_path / "a", text, keep)
    middle = f"resume={tmp_path / 'a' / 'checkpoints' / 'step-000002.ckpt'}"
    on = fit(tmp_path / "b", text, middle, "optimizer.ema_decay=0.6", last_state, keep)
    again = fit(tmp_path / "b", text, "resume=auto", "optimizer.ema_decay=0.6", last_state)
    assert again["test/loss"] == on["test/loss"]  # nothing was left to train
    assert again["tested_checkpoint"] == "last.ckpt"
    assert identical(last(tmp_path / "b")["state_dict"], last(tmp_path / "a")["state_dict"])
    assert on["val/loss"] != last(tmp_path / "a")["metrics"]["val/loss"]


def scored(checkpoint: Path, *arguments: str, output: Path) -> dict:
    assert main(["action=test", f"ckpt={checkpoint}", *arguments, f"output={output}"]) == 0
    return json.loads(output.read_text())


# Less memory


def test_recomputed_blocks_change_nothing(text, tmp_path):
    """Random features that are drawn anew, dropout, and memories carried from batch to batch."""
    options = ["model=performer", "model/feature_map=favor_lm", "model.positions=none"]
    options += ["task.context=carried", "task.eval=carried", "task.eval_batch_size=2"]
    options.append("size.n_layers=2")
    run = resumed(tmp_path / "again", text, *options, "model.recompute=true")
    kept = "callbacks.checkpoint.keep_every_n_train_steps=2"
    fit(tmp_path / "once", text, *options, kept)
    assert curve(tmp_path / "once") == curve(run)
    for name in ("state_dict", "optimizer_states", "carried"):
        assert identical(last(tmp_path / "once")[name], last(run)[name])
    # Type checks draw of Python's numbers.
    assert identical(last(tmp_path / "once")["rng"][0]["torch"], last(run)["rng"][0]["torch"])
