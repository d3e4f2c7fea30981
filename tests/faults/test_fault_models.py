"""Every named model and its hybrid with softmax attention: trained, killed, resumed, then used."""

import signal

import pytest

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.diagnostics.layers import memory_layers
from tests.faults.processes import assert_same_run, rows, run
from train import main

SHORT = (
    *("trainer.max_steps=8", "trainer.val_check_interval=4", "optimizer.warmup_steps=2"),
    *("callbacks.checkpoint.every_n_train_steps=2", "diagnostics.every_n_steps=4"),
    "logger=none",  # of TensorBoard: it would draw figures, most of the time
)
HYBRID = ("model@alternate=softmax", "model.alternate_every=2")
MODELS = {model: (f"model={model}",) for model in groups()["model"]}
CASES = MODELS | {f"{model} hybrid": (*made, *HYBRID) for model, made in MODELS.items()}
WATCHERS = ("fast_weight_norm", "softmax_attention")
"""Between them they see every memory."""


def cases():
    for ranks in (1, 2):
        for name, model in CASES.items():
            marks = () if name == "gated_deltanet hybrid" else pytest.mark.full
            yield pytest.param(model, ranks, marks=marks, id=f"{name}, {ranks}")


@pytest.mark.parametrize(("model", "ranks"), cases())
def test_every_model_resumes_exactly_and_is_used(
    model, ranks, tiny, tmp_path, free_port, capsys
) -> None:
    def start(name, *, code=0, **settings):
        """Train as one process or as both of torchrun; return what was told."""
        words = [*tiny, *SHORT, *model, f"run_dir={tmp_path / name}", "resume=auto"]
        port = free_port if ranks == 2 else None
        ended = run(words, folder=tmp_path / f"{name}-output", port=port, **settings)
        assert ended.code == code, ended.err
        return ended.out

    start("whole")
    start("run", fault={"kind": "kill", "step": 6}, code=-signal.SIGKILL)
    assert "after step 4" in start("run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")

    memories = memories_of(model)
    seen = {(step, tag.split("/")[1]) for step, tag in rows(tmp_path / "run") if watched(tag)}
    assert seen == {(step, layer) for step in (4, 8) for layer in memories}
    if ranks == 2:
        return  # the checkpoint is that of one

    capsys.readouterr()
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    assert main(["action=generate", ckpt, "prompt=w1 w2 w3", "generate.max_new_tokens=5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("w1 w2 w3")
    assert len(text) > len("w1 w2 w3\n")

    few = ["diagnostics.capacity_draws=1", "diagnostics.report_sequences=4"]
    assert main(["action=diagnose", ckpt, *few]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in dict.fromkeys(told) if name != "to try"] == memories
    report = (tmp_path / "run" / "diagnosis.html").read_text()
    assert all(layer in report for layer in memories)


def memories_of(model) -> list[str]:
    """The layers that have one: all, but of recurrent nets."""
    network = compose_config(["size=tiny", *model]).config["network"]
    return [layer.name for layer in memory_layers(build("network", network, vocab_size=9))]


def watched(tag: str) -> bool:
    return tag.split("/")[0] in WATCHERS
