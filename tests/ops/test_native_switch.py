"""The door to compiled code: FWLIGHT_NATIVE=0 for a process, a back end's name for a memory."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap, EluFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM, EncoderDecoder, Retriever
from fwlight.ops import backends, delta_rule, native, sum_rule
from fwlight.ops.native import launch
from tests.ops.discovery import needs_compiler

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = "FWLIGHT_NATIVE=0 switches compiled code off"

TRAIN = """
import shlex, sys, train
for words in sys.argv[1:]:
    assert train.main(shlex.split(words)) == 0
from fwlight.ops.native.build import library
print("libraries:", library.cache_info().currsize)
print("loaded:", "rules-float-" in open("/proc/self/maps").read())
"""


def start(*words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *(" ".join(map(str, x)) for x in words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is loaded")
def test_a_process_that_is_told_so_trains_without_compiled_code_and_alike(tmp_path):
    text = tmp_path / "text"
    text.write_text("the cat sat on the mat and the dog ran off .\n" * 100)
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none"]
    data = ["task.data=text", f"task.path={text}", "task.batch_size=2", "task.seq_len=16"]
    plain = ["task=lm", "model=delta_dpfp", "size=tiny", *data, *short]
    exact = [*plain, "size.dropout=0"]
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ntouch {tmp_path}/asked\nexec c++ "$@" -O1\n')
    compiler.chmod(0o755)
    folders = {name: tmp_path / name for name in ("dropout", "without", "with")}
    off = start(
        [*plain, "size.dropout=0.5", f"run_dir={folders['dropout']}"],
        [*exact, f"run_dir={folders['without']}"],
        FWLIGHT_CACHE=str(tmp_path / "cache"),
        CXX=str(compiler),
        FWLIGHT_NATIVE="0",
    )
    on = start([*exact, f"run_dir={folders['with']}"])
    for process, loaded in ((off, False), (on, True)):
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert f"libraries: {int(loaded)}\nloaded: {loaded}\n" in out
        assert "FWLIGHT_NATIVE" not in errors  # who asked for it is not warned of it
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "cache").exists()
    summaries = {x: json.loads((folders[x] / "summary.json").read_text()) for x in folders}
    for name in ("train/loss", "val/loss", "test/loss"):
        assert summaries["without"][name] == pytest.approx(summaries["with"][name], rel=1e-5)
        assert summaries["dropout"][name] != summaries["without"][name]


@pytest.mark.parametrize(
    "value", ["off", *(pytest.param(x, marks=pytest.mark.full) for x in ("2", "false"))]
)
def test_what_is_neither_0_nor_1_is_refused_in_a_line(value):
    done = subprocess.run(
        [sys.executable, "train.py", "task=retrieval", "run_dir=/dev/null/no"],
        cwd=ROOT,
        env={**os.environ, "FWLIGHT_NATIVE": value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.endswith(f"FWLIGHT_NATIVE={value} is neither 0 (no compiled code) nor 1\n")
    assert done.stderr.count("\n") == 1


def watch(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The compiled functions called from now on."""
    called = set()
    function = launch._function

    def watched(name, dtype):
        called.add(name.removeprefix("fwlight_"))
        return function(name, dtype)

    monkeypatch.setattr(launch, "_function", watched)
    return called


DPFP = partial(DPFPFeatureMap, 2)


def memory(backend, *, rule=delta_rule, feature_map=DPFP, **options):
    rule = partial(rule, backend=backend)
    return partial(
        FastWeights, feature_map=feature_map, update_rule=rule, key_norm="sum", **options
    )


SIZES = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_ff": 8, "dropout": 0.5}
TOKENS = torch.arange(40).view(2, 20) % 7
softmax = partial(MultiHeadAttention, memory=KeyValues)


def decoder(backend, **options):
    attention = partial(MultiHeadAttention, memory=memory(backend))
    network = DecoderLM(vocab_size=7, attention=attention, **SIZES, **options)
    return network(TOKENS)[0]


def translator(backend):
    # All but one of its attentions are softmax.
    cross = partial(MultiHeadAttention, memory=memory(backend))
    network = EncoderDecoder(
        vocab_size=7, pad_id=0, encoder=softmax, decoder=softmax, cross=cross, **SIZES
    )
    return network(TOKENS, TOKENS).clone()


def retriever(backend, **options):
    network = Retriever(n_keys=7, d_head=4, memory=memory(backend, **options))
    return network(TOKENS, TOKENS, TOKENS[:, :1])


RULE = {"forward", "backward"}
NETWORKS = {
    "delta": (decoder, {}, {*RULE, "dpfp", "dropout"}),
    "sum, elu": (
        retriever,
        {"rule": sum_rule, "feature_map": EluFeatureMap, "out_norm": "layernorm"},
        {"sum_norm"},
    ),
    "hybrid": (
        decoder,
        {"alternate": softmax, "alternate_every": 2},
        {*RULE, "dpfp", "dropout"},
    ),
    "translator": (translator, {}, {*RULE, "dpfp", "dropout"}),
    "one read of a map": (retriever, {}, {"dpfp", "read"}),
    "one read": (retriever, {"read_norm": "full"}, {"dpfp", "read"}),
}


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["chunk", "recurrent", "fla"])
def test_a_back_end_chosen_by_name_runs_no_compiled_code_for_its_memory(name, backend, monkeypatch):
    build, options, wanted = NETWORKS[name]
    monkeypatch.setattr(backends, "_warn_once", lambda _: None)  # of fla
    called = watch(monkeypatch)
    build(backend, **options).square().sum().backward()
    assert called == set()
    for compiled in ("auto", "native"):
        called.clear()
        build(compiled, **options).square().sum().backward()
        assert called == wanted


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_switched_off_none_runs_whatever_the_back_end(name, monkeypatch):
    build, options, wanted = NETWORKS[name]
    called = watch(monkeypatch)
    with native.switched_off(), warnings.catch_warnings():
        warnings.simplefilter("error")
        build("auto", **options).square().sum().backward()
    assert called == set()
    build("auto", **options).square().sum().backward()
    assert called == wanted


def test_only_who_asks_for_native_by_name_is_told_that_it_is_switched_off(monkeypatch):
    told = []
    monkeypatch.setattr(backends, "_warn_once", told.append)
    x = torch.ones(1, 1, 20, 4)
    with native.switched_off():
        delta_rule(x, x / 2, x, x[..., 0])
        assert told == []
        delta_rule(x, x / 2, x, x[..., 0], backend="native")
    assert told == [f"backend='native' cannot run here ({WITHOUT}); using backend='chunk'"]
