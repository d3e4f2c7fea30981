"""What the layer watchers log of real training runs, and that they change nothing."""

import re
from functools import partial

import pytest
import torch
from lightning import Callback

from callbacks.beta import Beta
from callbacks.dashboard import Dashboard
from callbacks.decay import Decay
from callbacks.fast_weight_norm import FastWeightNorm
from callbacks.gradient_norm import GradientNorm
from callbacks.interventions import Interventions
from callbacks.memory_capacity import MemoryCapacity
from callbacks.softmax_attention import SoftmaxAttention
from fwlight import run
from fwlight.diagnostics import diagnose
from fwlight.diagnostics.layers import look, memory_layers, watch_forward
from fwlight.feature_maps import DPFPFeatureMap, IdentityFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.ops import delta_rule
from tests.run import standin
from tests.run.standin import Settings, rows
from tests.test_recipes import steps

MEMORIES = {
    "delta": partial(
        FastWeights,
        feature_map=partial(DPFPFeatureMap, nu=1),
        update_rule=delta_rule,
        key_norm="sum",
    ),
    "unnormalised": partial(FastWeights, feature_map=IdentityFeatureMap, update_rule=delta_rule),
    "softmax": KeyValues,
}
KINDS = ("fast_weight_norm", "memory_capacity", "beta")


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """More threads only wait for one another on so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def watchers(every=4, sequences=2):
    options = {"every_n_steps": every, "sequences": sequences}
    kinds = (FastWeightNorm, MemoryCapacity, SoftmaxAttention)
    return [
        *(kind(**options) for kind in kinds),
        Beta(**options, tokens=3, min_count=1),
        GradientNorm(),
        Dashboard(),
    ]


def fit(tmp_path, monkeypatch, *callbacks, memory="delta", **settings):
    """Train the stand-in around a memory; return its logged values and its module."""
    attention = partial(MultiHeadAttention, memory=MEMORIES[memory])
    monkeypatch.setattr(standin, "MultiHeadAttention", lambda memory, **kw: attention(**kw))
    run.quiet()
    settings = {"max_steps": 10, "val_every": 5, "samples": 0, **settings}
    folder, trainer, module, data = standin.parts(Settings(run_dir=str(tmp_path), **settings))
    trainer.callbacks = [*callbacks, *trainer.callbacks[2:]]
    run.fit(trainer, module, data, folder=folder)
    return {key: float(value) for key, value in rows(tmp_path).items()}, module


@pytest.mark.parametrize("memory", ["delta", "softmax"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_watchers_change_nothing_in_training(tmp_path, monkeypatch, memory, accumulate):
    settings = {"memory": memory, "accumulate": accumulate, "val_every": 5 * accumulate}
    alone, bare = fit(tmp_path / "a", monkeypatch, **settings)
    found, watched = fit(tmp_path / "b", monkeypatch, *watchers(every=1), **settings)
    assert {key: found[key] for key in alone} == alone
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    own = {tag for _, tag in found} - {tag for _, tag in alone}
    kinds = {"softmax": {"softmax_attention"}}.get(
        memory, {"fast_weight_norm", "memory_capacity", "beta"}
    )
    assert {tag.split("/")[0] for tag in own} == kinds | {"gradient_norm"}


def test_interventions_are_logged_and_change_nothing(tmp_path, monkeypatch):
    alone, bare = fit(tmp_path / "a", monkeypatch)
    looking = Interventions(every_n_steps=4, sequences=2)
    found, watched = fit(tmp_path / "b", monkeypatch, looking)
    assert {key: found[key] for key in alone} == alone
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    own = {key for key in found if key not in alone}
    assert {step for step, _ in own} == {4, 8, 10}
    names = {f"interventions/layer0/{x}{y}" for x in ("mean", "linear") for y in ("", "_error")}
    assert names <= {tag for _, tag in own}
    with pytest.raises(ValueError, match="at least 1"):
        Interventions(sequences=0)


def test_watchers_log_what_diagnose_says_of_every_so_manieth_sequence(tmp_path, monkeypatch):
    seen = {}

    class Spy(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step not in (4, 8, 10):
                return
            layer = memory_layers(module.network)[0]
            few = type(batch)(*(x[::2] for x in batch))
            watcher = watch_forward(module.network, [layer], lambda: module(few))["layer0"]
            writes, (q, _) = watcher.writes[0], watcher.reads[0][0]
            flat = [x.transpose(0, 1).flatten(0, 1)[:, None] for x in (writes.k, writes.v, q)]
            beta = writes.beta.transpose(0, 1).flatten(0, 1)[:, None]
            # Heads as sequences of one head: what is logged pools them.
            values = diagnose(flat[0], flat[1], beta, rule=delta_rule, q=flat[2]).values
            seen[trainer.global_step] = values

    found, _ = fit(tmp_path, monkeypatch, MemoryCapacity(every_n_steps=4, sequences=2), Spy())
    assert sorted(seen) == sorted({step for step, tag in found if "capacity" in tag}) == [4, 8, 10]
    for step, values in seen.items():
        for name, source in (("load", "load/mean"), ("best_error", "best/error")):
            logged = found[step, f"memory_capacity/layer0/{name}"]
            assert logged == pytest.approx(float(values[source]), rel=1e-9)
        scaled = found[step, "memory_capacity/layer0/scaled_recall_error"]
        assert scaled == pytest.approx(float(values["last/scaled_error"]) ** 2, rel=1e-9)
        heads = [found[step, f"memory_capacity/layer0/heads_{x}"] for x in ("healthy",)]
        heads += [found[step, f"memory_capacity/layer0/heads_{x}_{y}"] for x, y in (
            ("rule", "limited"), ("over", "capacity"))]  # fmt: skip
        assert sum(heads) == 2


def test_parts_that_are_due_share_one_forward_pass(tmp_path, monkeypatch):
    looks = []

    class Count(Callback):
        def on_fit_start(self, trainer, module):
            # Validation calls the network, not the module; training does in training mode.
            module.register_forward_hook(
                lambda *_: None if module.network.training else looks.append(trainer.global_step)
            )

    parts = [FastWeightNorm(every_n_steps=4), MemoryCapacity(every_n_steps=4)]
    parts.append(Beta(every_n_steps=3, sequences=4))
    others = [SoftmaxAttention(every_n_steps=1), Decay(every_n_steps=1)]  # of no layer here
    together, _ = fit(tmp_path / "a", monkeypatch, *parts, *others, Count(), max_steps=7)
    assert looks == [3, 4, 6, 7]
    steps = {kind: {s for s, tag in together if tag.startswith(f"{kind}/layer0")} for kind in KINDS}
    assert steps == {
        "fast_weight_norm": {4, 7},
        "memory_capacity": {4, 7},
        "beta": {3, 6, 7},
    }
    looks.clear()
    alone, _ = fit(tmp_path / "b", monkeypatch, Beta(every_n_steps=3), Count(), max_steps=7)
    assert looks == [3, 6, 7]
    assert alone.items() <= together.items()


def test_parts_that_want_other_sequences_look_on_their_own(tmp_path, monkeypatch):
    few, all_ = (kind(every_n_steps=5) for kind in (MemoryCapacity, FastWeightNorm))
    few.sequences = 1
    together, _ = fit(tmp_path / "a", monkeypatch, few, all_, max_steps=5)
    few.sequences = 4
    equal, _ = fit(tmp_path / "b", monkeypatch, few, all_, max_steps=5)
    other = {tag.split("/")[0] for (step, tag), x in together.items() if equal[step, tag] != x}
    assert other == {"memory_capacity"}


def test_a_part_of_ones_own_is_what_contributing_says(tmp_path, monkeypatch):
    own = {}
    exec(steps("A callback")["callbacks/mine.py"], own)
    looked = {}

    class Spy(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            (layer,) = memory_layers(module.network)
            ((_, (seen,)),) = look(module, [layer], batch)
            looked[trainer.global_step] = float(seen.v.square().sum(-1).sqrt().mean())

    mine = own["Mine"](every_n_steps=5, sequences=None)
    found, _ = fit(tmp_path, monkeypatch, mine, Beta(every_n_steps=5), Spy())
    logged = {step: x for (step, tag), x in found.items() if tag == "mine/layer0/mean"}
    assert logged == {step: pytest.approx(looked[step]) for step in (5, 10)}


def test_watchers_say_how_training_ended_even_if_it_was_stopped(tmp_path, monkeypatch, capsys):
    for memory, words in (("delta", "; load "), ("softmax", "softmax attention over ")):

        class Stop(Beta):
            def on_train_batch_end(self, trainer, *rest):
                trainer.should_stop |= trainer.global_step == 7

        looks = watchers(every=100)
        folder = tmp_path / memory
        found, _ = fit(folder, monkeypatch, *looks, Stop(), memory=memory)
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("layer0: "))
        assert words in line
        # What only the end of this very run looked at is not on its curves.
        tags = {tag.split("/")[0] for _, tag in found}
        assert not tags & {"fast_weight_norm", "memory_capacity", "beta", "softmax_attention"}


def test_expanding_writes_are_warned_of_once(tmp_path, monkeypatch, capsys):
    draw = torch.nn.init.normal_
    monkeypatch.setattr("torch.nn.init.normal_", lambda x, mean=0, std=1: draw(x, mean, 20 * std))
    looks = Beta(every_n_steps=1, sequences=None)
    fit(tmp_path, monkeypatch, looks, memory="unnormalised", max_steps=4, lr=1e-9)
    warnings = [x for x in capsys.readouterr().err.splitlines() if "at least 2" in x]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: step 1: ")
    assert "layer0" in warnings[0]


@pytest.mark.parametrize(("first", "steps"), [(0.0, [4, 10]), (1.0, [10])])
def test_tables_of_tokens_figures_and_layout_reach_the_logger(tmp_path, monkeypatch, first, steps):
    monkeypatch.setattr("callbacks.watching._FIRST_DRAWING", first)  # what must be earned before it
    shown = {"text": {}, "figure": {}, "layout": {}}
    for kind in ("text", "figure"):
        monkeypatch.setattr(
            f"fwlight.run.loggers.TensorBoard.show_{kind}",
            lambda self, tag, x, step, kind=kind: shown[kind].setdefault(tag, []).append((step, x)),
        )
    monkeypatch.setattr(
        "fwlight.run.loggers.TensorBoard.show_layout", lambda self, x: shown["layout"].update(x)
    )
    found, _ = fit(tmp_path, monkeypatch, *watchers())
    (step, table), *_ = shown["text"]["beta/layer0/tokens"]
    head, *lines = table.splitlines()
    assert step == steps[0]  # 4: of the look that the validation at 5 shows
    assert head.split() == ["highest", "beta", "mean", "seen", "lowest", "beta", "mean", "seen"]
    assert [len(line.split()) for line in lines] == [6, 6, 6]
    means = [float(line.split()[1]) for line in lines]
    assert means == sorted(means, reverse=True)
    figures = shown["figure"]
    assert set(figures) == {"fast_weight_norm", "memory_capacity", "beta"}
    assert [step for step, _ in figures["beta"]] == steps
    assert all(len(figure.axes) >= 4 for drawn in figures.values() for _, figure in drawn)
    charts = shown["layout"]["layer0"]
    tags = {tag for _, tag in found}
    for patterns in charts.values():
        assert all(any(re.match(pattern, tag) for tag in tags) for pattern in patterns)


def test_gradient_norms_of_all_groups_make_the_total(tmp_path, monkeypatch):
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        found, _ = fit(folder, monkeypatch, GradientNorm(), accumulate=accumulate, max_steps=4)
        for step in (1, 2, 3):
            groups = {t: x for (s, t), x in found.items() if s == step and "gradient_norm/" in t}
            assert set(groups) == {
                f"gradient_norm/{x}" for x in ("embedding", "blocks.0", "output")
            }
            total = sum(x * x for x in groups.values()) ** 0.5
            assert total == pytest.approx(found[step, "train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("kind", [FastWeightNorm, MemoryCapacity, Beta, SoftmaxAttention])
def test_watchers_refuse_numbers_below_one(kind):
    with pytest.raises(ValueError, match="every_n_steps=0"):
        kind(every_n_steps=0)
    with pytest.raises(ValueError, match="sequences=0"):
        kind(sequences=0)
