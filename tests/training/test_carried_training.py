"""Full-context training and evaluation, end to end through train.py."""

import json
import signal

import pytest
import torch
from torch.utils import _pytree as pytree

from fwlight.run import load_checkpoint
from tests.faults.processes import run
from train import main

SMALL = [
    *("size=tiny", "task.data=text", "task.batch_size=4", "task.seq_len=16", "optimizer.lr=3e-3"),
    *("logger=none", "callbacks=none", "task.min_count=1", "trainer.log_every_n_steps=1"),
]
CARRIED = ["task.context=carried", "task.eval=carried", "task.eval_batch_size=2"]
CARRIED += ["model.positions=none"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Prose in which what comes next depends on the number that began a chapter."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in torch.randint(9, (60,), generator=generator).tolist():
        length = int(torch.randint(3, 9, (), generator=generator))
        lines += [f"chapter {number}", *(f"w{i} tells of number {number} ." for i in range(length))]
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _arguments(text, folder, *more) -> list[str]:
    return [*SMALL, f"task.path={text}", f"run_dir={folder}", *more]


def _fit(text, folder, *more) -> dict:
    assert main(_arguments(text, folder, *more)) == 0
    return json.loads((folder / "summary.json").read_text())


def _curve(folder) -> list[str]:
    return [
        line
        for line in (folder / "metrics.csv").read_text().splitlines()
        if line.split(",")[1].startswith(("train/loss", "train/grad_norm", "val/"))
    ]


@pytest.mark.parametrize("model", ["linear", "delta_linear"])
def test_carried_evaluation_does_not_depend_on_the_segments(text, tmp_path, model):
    """Delta and sum rule, without positions: 64, 256 and 1,024 tokens, one perplexity."""
    more = [f"model={model}", *CARRIED, "task.eval_batch_size=1", "trainer.max_steps=10"]
    # The whole text is the test split.
    more += ["task.path=null", *(f"task.{split}={text}" for split in ("train", "valid", "test"))]
    _fit(text, tmp_path / "run", *more)
    found = {}
    for seq_len in (64, 256, 1024):
        output = tmp_path / f"{seq_len}.json"
        ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
        tested = ["action=test", ckpt, f"task.seq_len={seq_len}", f"output={output}"]
        assert main(tested) == 0
        found[seq_len] = json.loads(output.read_text())
    perplexities = [result["test/ppl"] for result in found.values()]
    assert max(perplexities) - min(perplexities) < 1e-4
    (counted,) = {result["test/tokens"] for result in found.values()}
    assert counted > 1024


def test_sliding_windows_in_batches_are_those_one_by_one(text, tmp_path):
    _fit(text, tmp_path / "run", "model=delta_dpfp", "trainer.max_steps=20")
    found = []
    for options in (
        ["task.eval=sliding", "task.eval_stride=1", "task.eval_batch_size=1"],
        ["task.eval=sliding", "task.eval_stride=1", "task.eval_batch_size=32"],
        ["task.eval=sliding", "task.eval_stride=16"],
        ["task.eval=segment"],
        ["task.eval=segment", "task.test_split=valid"],
    ):
        output = tmp_path / "result.json"
        ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
        assert main(["action=test", ckpt, f"output={output}", *options]) == 0
        found.append(json.loads(output.read_text()))
    valid = found.pop()
    one, many, no_overlap, segment = found
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert valid["test/loss"] == pytest.approx(summary["val/loss"], rel=1e-6)
    assert one["test/loss"] == pytest.approx(many["test/loss"], rel=1e-6)
    assert no_overlap["test/loss"] == pytest.approx(segment["test/loss"], rel=1e-6)
    assert one["test/loss"] != pytest.approx(segment["test/loss"], rel=1e-4)
    assert len({result["test/tokens"] for result in found}) == 1


@pytest.mark.parametrize("model", ["delta_linear", "performer"])
def test_resumed_carried_training_is_the_uninterrupted_one(text, tmp_path, model):
    """From every kept checkpoint, over the end of an epoch, bit for bit."""
    more = [f"model={model}", *CARRIED, "trainer.max_steps=40", "trainer.val_check_interval=15"]
    if model == "performer":
        more.append("model/feature_map=favor_lm")  # takes draws in training
    kept = "callbacks.checkpoint.keep_every_n_train_steps=7"
    _fit(text, tmp_path / "whole", *more, kept)
    whole = _curve(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "checkpoints").glob("step-*.ckpt"))[::2]:
        step = load_checkpoint(path)["global_step"]
        folder = tmp_path / path.stem
        _fit(text, folder, *more, f"resume={path}")
        later = [line for line in whole if int(line.split(",")[0]) > step]
        assert _curve(folder)[-len(later) :] == later, path.name


def test_carried_state_of_another_form_is_a_damaged_checkpoint(text, tmp_path, capsys):
    arguments = ["model=linear", *CARRIED, "trainer.val_check_interval=3", "trainer.max_steps=3"]
    _fit(text, tmp_path / "run", *arguments)
    whole = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    path = tmp_path / "edited.ckpt"

    def changed(function):
        carried = pytree.tree_map_only(torch.Tensor, function, whole["carried"])
        torch.save({**whole, "carried": carried}, path)
        return main(
            _arguments(
                text, tmp_path / "again", *arguments, "trainer.max_steps=4", f"resume={path}"
            )
        )

    for function in (
        lambda x: x[:2],  # of the four lanes
        lambda x: x[..., None],
        lambda x: x + torch.inf,
    ):
        capsys.readouterr()
        assert changed(function) == 4
        errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(errors) == 1
        assert f"{path} is damaged" in errors[0]
    position = next(i for i, x in enumerate(whole["carried"]) if isinstance(x, int))
    whole["carried"][position] = -1
    assert changed(lambda x: x) == 4


def test_training_starts_from_what_the_last_segment_left(text, tmp_path):
    losses = {}
    for context in ("carried", "segment"):
        more = ["model.positions=none", f"task.context={context}", "trainer.max_steps=2"]
        _fit(text, tmp_path / context, *more)
        losses[context] = [x for x in _curve(tmp_path / context) if ",train/loss," in x]
    assert losses["carried"][0] == losses["segment"][0]
    assert losses["carried"][1] != losses["segment"][1]


def test_memory_that_grows_cannot_be_carried(text, tmp_path, capsys):
    assert main(_arguments(text, tmp_path / "run", "model=softmax", *CARRIED)) == 2
    assert "memory of constant size" in capsys.readouterr().err


def test_documents_need_a_source_that_has_them(text, tmp_path, capsys):
    assert main(_arguments(text, tmp_path / "run", *CARRIED, "task.reset=document")) == 2
    assert "task.data=text does not say" in capsys.readouterr().err


def test_documents_are_trained_apart(tmp_path, capsys):
    for split in ("train", "valid", "test"):
        article = " = One = \n \n the cat sat on the mat . \n = = Two = = \n it sat on . \n"
        (tmp_path / f"wiki.{split}.tokens").write_text(article * 30)
    data = ["task.data=wikitext", f"task.path={tmp_path}", *CARRIED, "task.reset=document"]
    settings = [*SMALL, *data, "trainer.max_steps=12", f"run_dir={tmp_path / 'run'}"]
    assert main(settings) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test/ppl"] < 30
    assert main([*settings, f"run_dir={tmp_path / 'p'}", "model.positions=sinusoidal"]) == 2
    assert "need model.positions=none" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["delta_dpfp", "softmax"])
def test_packed_articles_are_read_as_if_alone(model, tmp_path):
    """One to a row or many, what is predicted is the same; without packing it is not."""
    article, length = " = {} = \n \n the cat sat on mat {} . \n", 13
    for split in ("train", "valid", "test"):
        text = "".join(article.format(i % 7, i % 3) for i in range(40))
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    data = ["task.data=wikitext", f"task.path={tmp_path}", "task.seq_len=32"]
    settings = [*SMALL, *data, f"model={model}", "model.positions=sinusoidal", "task.packing=true"]
    run = tmp_path / "run"
    assert main([*settings, "trainer.max_steps=20", f"run_dir={run}"]) == 0

    def loss(packing: str, seq_len: int) -> float:
        ckpt, out = run / "checkpoints" / "last.ckpt", tmp_path / "out.json"
        words = [f"ckpt={ckpt}", f"output={out}", f"task.packing={packing}"]
        assert main(["action=test", *words, f"task.eval_seq_len={seq_len}"]) == 0
        return json.loads(out.read_text())["test/loss"]

    alone = loss("true", length)
    assert loss("true", 5 * length) == pytest.approx(alone, rel=1e-6)
    assert loss("false", length) == pytest.approx(alone, rel=1e-6)
    assert loss("false", 5 * length) != pytest.approx(alone, rel=1e-3)


def _run(text, folder, *more, **settings):
    output = folder.with_name(f"{folder.name}-output")
    return run(_arguments(text, folder, *more), folder=output, timeout=300, **settings)


AVERAGED = ["task.lengths=drawn", "optimizer=adam_then_sgd", "optimizer.average_from=3"]
AVERAGED += ["optimizer.schedule=constant", "optimizer.algorithm.sgd_lr=0.5"]


@pytest.mark.parametrize(("ranks", "options"), [(1, []), (2, AVERAGED)])
def test_killed_carried_training_resumes_bit_for_bit(text, tmp_path, ranks, options, free_port):
    more = [*CARRIED, "trainer.max_steps=60", "callbacks.checkpoint.every_n_train_steps=4"]
    more += options
    port = free_port if ranks == 2 else None
    fault = {"kind": "kill", "step": 7}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert _run(text, killed, *more, port=port, fault=fault).code == -signal.SIGKILL
    assert load_checkpoint(killed / "checkpoints" / "last.ckpt")["global_step"] == 4
    for folder in (killed, whole):
        ended = _run(text, folder, *more, "resume=auto", port=port)
        assert ended.code == 0, ended.err
    assert _curve(killed) == _curve(whole)


def test_two_ranks_carry_the_lanes_of_one_process(text, tmp_path, free_port):
    more = [*CARRIED, "size.dropout=0", "trainer.max_steps=20"]
    one = _fit(text, tmp_path / "one", *more)
    ended = _run(text, tmp_path / "two", *more, port=free_port)
    assert ended.code == 0, ended.err
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    for name in ("train/loss", "val/loss", "test/loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert two["test/tokens"] == one["test/tokens"]
    # The checkpoint holds all lanes, whoever read them.
    shapes = [
        [getattr(x, "shape", x) for x in pytree.tree_leaves(load_checkpoint(last)["carried"])]
        for last in (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("one", "two"))
    ]
    assert shapes[0]
    assert shapes[0] == shapes[1]
