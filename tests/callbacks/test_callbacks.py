"""What the callbacks show, on runs of the stand-in."""

import io
import re

import pytest
import torch
from lightning import Callback

from callbacks.progress import Progress
from callbacks.text_samples import TextSamples
from callbacks.throughput import Throughput
from fwlight import run
from tests.run import standin
from tests.run.standin import Settings, rows


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """More threads only wait for one another on so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit(tmp_path, *callbacks, **settings):
    """Run with these callbacks in place of the stand-in's."""
    run.quiet()
    folder, trainer, module, data = standin.parts(Settings(run_dir=str(tmp_path), **settings))
    kinds = (Progress, Throughput, TextSamples)
    others = [callback for callback in trainer.callbacks if not isinstance(callback, kinds)]
    trainer.callbacks = [*callbacks, *others]
    run.fit(trainer, module, data, folder=folder)
    return {key: float(value) for key, value in rows(tmp_path).items()}


def test_progress_writes_one_plain_line_every_n_steps(tmp_path):
    out = io.StringIO()
    found = fit(tmp_path, Progress(every_n_steps=10, stream=out), max_steps=25, val_every=12)
    lines = out.getvalue().splitlines()
    pattern = (
        r"\[ *\d+\.\d s\] step (\d+)/25  (validation: )?loss (\S+)  ppl (\S+)(  lr \S+)?"
        r"(?:  \d+ s left)?"
    )
    parsed = [re.fullmatch(pattern, line).groups() for line in lines]
    assert [(int(p[0]), bool(p[1])) for p in parsed] == [
        (10, False),
        (12, True),
        (20, False),
        (24, True),
        (25, False),
        (25, True),
    ]
    for step, validation, loss, ppl, lr in parsed:
        split = "val" if validation else "train"
        assert float(loss) == pytest.approx(found[int(step), f"{split}/loss"], abs=1e-4)
        assert float(ppl) == pytest.approx(found[int(step), f"{split}/ppl"], abs=1e-2)
        assert (lr is None) == bool(validation)


def test_progress_says_how_long_the_steps_will_take_that_are_left(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("callbacks.progress.time.monotonic", lambda: now[0])

    class Clock(Callback):
        def on_train_batch_start(self, *_):
            now[0] += 10

    for resume in ("never", "auto"):
        out, steps = io.StringIO(), {"never": 10, "auto": 25}[resume]
        shown = Progress(every_n_steps=5, stream=out)
        settings = {"max_steps": steps, "val_every": 100, "schedule": "constant"}
        fit(tmp_path, Clock(), shown, resume=resume, **settings)
        left = re.findall(r"step (\d+)/\d+  loss.*lr \S+(?:  (.*) left)?", out.getvalue())
        wanted = {"never": [("5", "50 s"), ("10", "")]}
        wanted["auto"] = [("15", "1 min 40 s"), ("20", "50 s"), ("25", "")]
        assert left == wanted[resume]


def test_progress_shows_a_bar_over_the_whole_run_on_a_terminal(tmp_path):
    out = Terminal()
    fit(tmp_path, Progress(every_n_steps=5, stream=out), max_steps=12, val_every=6)
    text = out.getvalue()
    assert "12/12" in text
    assert "\r" in text
    assert "validation: loss" in text


def test_progress_lines_are_rare_with_accumulated_batches(tmp_path):
    out = io.StringIO()
    settings = {"max_steps": 10, "val_every": 1000, "accumulate": 2}
    fit(tmp_path, Progress(every_n_steps=5, stream=out), **settings)
    steps = [int(step) for step in re.findall(r"step (\d+)/10  loss", out.getvalue())]
    assert steps == [5, 10]


def test_progress_refuses_an_interval_below_one():
    with pytest.raises(ValueError, match="every_n_steps=0"):
        Progress(every_n_steps=0)


def test_throughput_counts_target_tokens_and_leaves_evaluation_out(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("callbacks.throughput.time.monotonic", lambda: now[0])

    class Clock(Callback):
        """A step takes 2 s, an evaluation 1000 s."""

        def on_train_batch_start(self, *_):
            now[0] += 2

        def on_validation_batch_start(self, *_):
            now[0] += 1000

    found = fit(tmp_path, Clock(), Throughput(), max_steps=12, val_every=3)
    speeds = {s: value for (s, name), value in found.items() if name.endswith("per_second")}
    # 4 lanes of 5 tokens a step; the 11th segment of an epoch has 3
    assert speeds == {step: (4 * 3 if step == 11 else 4 * 5) / 2 for step in range(1, 13)}


def test_throughput_logs_memory_and_utilisation_where_the_peak_is_known(tmp_path, monkeypatch):
    found = fit(tmp_path / "a", Throughput(), max_steps=4)
    names = {name for _, name in found if name.startswith("throughput/")}
    assert names == {"throughput/tokens_per_second", "throughput/memory_gib"}
    assert 0.05 < found[4, "throughput/memory_gib"] < 100
    monkeypatch.setattr("callbacks.throughput._peak", lambda device, precision: 1e6)
    found = fit(tmp_path / "b", Throughput(), max_steps=4)
    # Embedding, tied to the output; q, k, v and output projection; two layers of width 16.
    weights = 23 * 8 + 4 * 8 * 8 + 2 * 8 * 16
    speed = found[4, "throughput/tokens_per_second"]
    used = found[4, "throughput/model_flops_utilisation"]
    assert used == pytest.approx(6 * weights * speed / 1e6, rel=1e-9)


def test_text_samples_are_logged_at_every_evaluation_and_repeat(tmp_path, monkeypatch):
    shown = {}

    def log_text(self, tag, text, step):
        shown.setdefault(tag, {})[step] = text

    monkeypatch.setattr("fwlight.run.loggers.TensorBoard.show_text", log_text)
    samples = TextSamples(prompts=("ab", "c"), max_new_tokens=5)
    fit(tmp_path / "a", samples, max_steps=12, val_every=6)
    first = {tag: dict(texts) for tag, texts in shown.items()}
    assert {tag: sorted(texts) for tag, texts in first.items()} == {
        "samples/0": [6, 12],
        "samples/1": [6, 12],
    }
    assert first["samples/0"][6].startswith("5 6 ")
    assert len(first["samples/0"][6].split()) == 7
    fit(tmp_path / "b", samples, max_steps=12, val_every=6)
    assert shown == first


def test_text_samples_continue_the_data_s_own_prompts(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "fwlight.run.loggers.TensorBoard.show_text",
        lambda self, tag, text, step: shown.setdefault(tag, text),
    )
    own = [[5, 6], [7]]
    monkeypatch.setattr(standin.TinyData, "prompts", lambda self, n: own[:n], raising=False)
    fit(tmp_path, TextSamples(max_new_tokens=3), max_steps=6, val_every=6)
    assert shown["samples/0"].startswith("5 6 ")
    assert shown["samples/1"].startswith("7 ")


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"temperature": 1e-38}, "1e-38"),
        ({"max_new_tokens": 0}, "0"),
        ({"prompts": ("",)}, "word"),
        ({"prompts": "ab"}, "list"),
        ({"prompts": (3,)}, "list"),
    ],
)
def test_text_samples_that_cannot_be_made_are_told_before_training(tmp_path, changed, word):
    with pytest.raises(ValueError, match=word):
        fit(tmp_path, TextSamples(**{"prompts": ("ab",), **changed}), max_steps=6)
    assert not (tmp_path / "metrics.csv").exists()


def test_callbacks_change_nothing_in_training(tmp_path):
    alone = fit(tmp_path / "a", max_steps=15)
    watched = fit(
        tmp_path / "b",
        Progress(every_n_steps=1, stream=io.StringIO()),
        Throughput(),
        TextSamples(prompts=("ab",), max_new_tokens=3),
        max_steps=15,
    )
    assert alone == {key: value for key, value in watched.items() if "throughput" not in key[1]}
