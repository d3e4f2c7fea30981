"""Trainings with `trainer=fsdp` in two processes and without in one; what test_fsdp compares."""

import json
import os
import re
from pathlib import Path

import torch
from lightning import Callback

import cli.building
from cli.main import main
from fwlight.run import leave
from tests.faults.processes import of_torchrun

TINY = (
    *("size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=32"),
    *("size.dropout=0", "logger=none", "trainer.log_every_n_steps=1", "optimizer.warmup_steps=4"),
    *("trainer.limit_val_batches=2", "trainer.limit_test_batches=2"),
)
LM = (
    *TINY,
    *("task=lm", "task.data=text", "task.path={text}", "task.batch_size=4", "task.seq_len=24"),
    "task.min_count=1",
)
SHORT = (*LM, "trainer.max_steps=6", "trainer.val_check_interval=3", "callbacks=none")
CASES = {
    "lm": (
        *(*LM, "trainer.max_steps=50", "trainer.val_check_interval=25"),
        *("callbacks.checkpoint.keep_every_n_train_steps=25", "diagnostics.every_n_steps=20"),
        *("callbacks=[default,lpq]", "callbacks.progress=null"),
        "callbacks.text_samples.max_new_tokens=3",
    ),
    "averaged": (
        *(*SHORT, "optimizer.ema_decay=0.9", "model.recompute=true", "model.output=adaptive"),
        *("model.cutoffs=[9,20]", "trainer.accumulate_grad_batches=2"),
        *("callbacks=lpq", "callbacks.lpq.mode=penalty", "callbacks.lpq.weight=0.01"),
        *("callbacks.checkpoint.keep_every_n_train_steps=3", "model=performer"),
    ),
    "projected": (
        *(*SHORT, "optimizer=sgd", "model.output=chunked", "model.untied_output=true"),
        *("trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.01"),
        *("callbacks=lpq", "callbacks.lpq.mode=project", "callbacks.lpq.bound=0.4"),
        *("model=gated_deltanet", "task.context=carried"),
    ),
    "translation": (
        *(*TINY, "task=translation", "task.data=files", "task.vocab_size=100"),
        *("task.train={pairs}", "task.valid={pairs}", "task.test={pairs}"),
        *("task.batch_tokens=200", "task.eval_batch_tokens=60", "translate.beam=2"),
        *("trainer.max_steps=6", "trainer.val_check_interval=3", "callbacks=gradient_norm"),
    ),
}
"""By name; each is trained as one process and as two."""
REFUSED = {
    "compiled": ((*SHORT, "compile=true"), "compile=true with trainer=fsdp"),
    "muon": ((*SHORT, "optimizer=muon"), "MuonAdamW may need whole matrices"),
    "retrieval": (
        ("task=retrieval", "task.n_keys=9", "task.batch_size=4", "size.d_head=8", "logger=none"),
        "task=lm and task=translation",
    ),
}


class Bytes(Callback):
    """Adds up what a process holds of weights, gradients and optimiser state after an update."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        parameters = list(pl_module.parameters())
        states = trainer.optimizers[0].state.values()
        held = [*parameters, *(p.grad for p in parameters)]
        held += [x for state in states for x in state.values() if x.ndim]
        total = sum(getattr(x, "to_local", lambda x=x: x)().nbytes for x in held)
        self.path.write_text(json.dumps(total))


class Infinite(Callback):
    """Makes one number of one process's gradients infinite, in the third update."""

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            local = [p.grad.to_local() for p in pl_module.parameters()]
            next(x for x in local if x.numel()).view(-1)[-1] = float("inf")


def train(name: str, words, folder: Path, *callbacks: Callback, **places: Path) -> int:
    """Run a command line in this process; return its exit code."""
    given = {}
    for word in words:  # the last one counts
        given[word.partition("=")[0]] = re.sub(r"\{(\w+)\}", lambda x: str(places[x[1]]), word)
    build = cli.building.build_callbacks
    cli.building.build_callbacks = lambda config: [*build(config), *callbacks]
    try:
        return main([*given.values(), f"run_dir={folder / name}"])
    finally:
        cli.building.build_callbacks = build


def alone(folder: Path, **places: Path) -> None:
    """Train every case as one process."""
    torch.set_num_threads(1)
    for name, words in CASES.items():
        assert train(name, words, folder, **places) == 0, name
    leave(0)


def rank(number: int, port: int, folder: Path, **places: Path) -> None:
    """Train every case as one of two processes, and what is refused."""
    os.environ.update(of_torchrun(number, port))
    torch.set_num_threads(1)
    two = ("trainer=fsdp", "trainer.devices=2")
    for name, words in CASES.items():
        measured = Bytes(folder / f"{name}.{number}.bytes")
        assert train(name, [*words, *two], folder, measured, **places) == 0, name
    data_parallel = [*SHORT, "trainer=ddp", "trainer.devices=2"]
    measured = Bytes(folder / f"ddp.{number}.bytes")
    assert train("ddp", data_parallel, folder, measured, **places) == 0
    skipping = [*SHORT, *two, "optimizer.max_skipped_updates=1"]
    assert train("skipping", skipping, folder, Infinite(), **places) == 0
    codes = {"infinite": train("infinite", [*SHORT, *two], folder, Infinite(), **places)}
    for name, (words, _) in REFUSED.items():
        codes[name] = train(name, [*words, *two], folder, **places)
    (folder / f"{number}.json").write_text(json.dumps(codes))
    leave(0)
