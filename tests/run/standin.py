"""A small run with everything real but the model and the text, as a script and as functions.

python tests/run/standin.py run_dir=PATH resume=auto kill_at=17 ...
"""

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningDataModule, Trainer

from callbacks.progress import Progress
from callbacks.text_samples import TextSamples
from callbacks.throughput import Throughput
from fwlight import run
from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import DecoderLM
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from tasks.lanes import EvalLanes, TrainLanes

VOCABULARY = 23


class TinyLM(DecoderLM):
    """A small decoder with dropout; with `noise` it draws Python's random numbers in training."""

    def __init__(self, dropout: float = 0.0, *, noise: bool = False) -> None:
        super().__init__(
            vocab_size=VOCABULARY,
            d_model=8,
            n_layers=1,
            n_heads=2,
            d_head=4,
            d_ff=16,
            dropout=dropout,
            attention=partial(MultiHeadAttention, memory=KeyValues),
        )
        self.noise = noise

    def features(self, tokens, *, initial_state=None):
        h, state = super().features(tokens, initial_state=initial_state)
        if self.training and self.noise:
            h = h * (1 + 0.1 * random.random())
        return h, state


class TinyData(LightningDataModule):
    """Lanes of a periodic stream: 11 segments an epoch, the last one shorter."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 5, (4 * 53 + 1,), generator=generator)
        self.stream = ((torch.arange(len(noise)) * 3 + noise) % VOCABULARY).int()

    def _ranks(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self):
        return TrainLanes(self.stream, batch_size=self.batch_size, seq_len=5, **self._ranks())

    def val_dataloader(self):
        return EvalLanes(self.stream[:101], batch_size=4, seq_len=5, **self._ranks())

    def test_dataloader(self):
        return EvalLanes(self.stream[60:], batch_size=4, seq_len=5, **self._ranks())

    def state_dict(self):
        return {"name": "tiny"}

    def load_state_dict(self, state_dict):
        assert state_dict == {"name": "tiny"}

    def encode(self, text):
        return [ord(c) % VOCABULARY for c in text]

    def decode(self, ids):
        return " ".join(map(str, ids))


class Fault(Callback):
    """Kills the process, or makes the logits of one rank NaN, from a step on."""

    def __init__(self, *, kill_at: int, nan_at: int, nan_rank: int) -> None:
        self.kill_at, self.nan_at, self.nan_rank = kill_at, nan_at, nan_rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step + 1
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.nan_at and trainer.global_rank == self.nan_rank:
            pl_module.network.output.register_forward_hook(lambda *_: _[2] * float("nan"))


@dataclass
class Settings:
    """What the command line can set."""

    run_dir: str = ""
    resume: str = "never"
    max_steps: int = 30
    max_time: str = ""
    every: int = 5
    keep: int = 0
    best: int = 1
    val_every: int = 7
    devices: int = 1
    precision: str = "32-true"
    accumulate: int = 1
    dropout: float = 0.3
    noise: int = 0  # not in a process under pytest: its type checks draw random numbers too
    lr: float = 0.01
    schedule: str = "cosine"
    samples: int = 1
    kill_at: int = 0
    nan_at: int = 0
    nan_rank: int = 0

    @classmethod
    def parse(cls, arguments):
        kinds = {field.name: field.type for field in fields(cls)}
        pairs = [argument.split("=", 1) for argument in arguments]
        return cls(**{key: kinds[key](value) for key, value in pairs})


def parts(settings: Settings):
    """Return folder, trainer, module and data of a run."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    folder = run.RunFolder.open(settings.run_dir, resume=settings.resume, is_rank_zero=rank == 0)
    torch.manual_seed(0)
    module = LanguageModelingModule(
        TinyLM(settings.dropout, noise=bool(settings.noise)),
        optimizer=OptimizerConfig(lr=settings.lr, warmup_steps=4, schedule=settings.schedule),
        max_steps=settings.max_steps,
    )
    data = TinyData(batch_size=4)
    onlookers = [Progress(every_n_steps=10), Throughput()]
    if settings.samples:
        onlookers.append(TextSamples(prompts=("ab",), max_new_tokens=3))
    onlookers.append(
        Fault(kill_at=settings.kill_at, nan_at=settings.nan_at, nan_rank=settings.nan_rank)
    )
    trainer = Trainer(
        max_steps=settings.max_steps,
        max_time=settings.max_time or None,
        accelerator="cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=0.25,
        val_check_interval=settings.val_every,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=run.build_loggers(folder, hyperparameters={"optimizer": {"lr": settings.lr}}),
        plugins=run.plugins(),
        callbacks=onlookers
        + run.run_callbacks(
            folder,
            seed=1,
            every_n_train_steps=settings.every,
            keep_every_n_train_steps=settings.keep,
            keep_best=settings.best,
            identity={"choices": {}, "overrides": [], "config": {}, "version": "test"},
        ),
    )
    return folder, trainer, module, data


def main(arguments) -> int:
    run.quiet()
    try:
        folder, trainer, module, data = parts(Settings.parse(arguments))
        summary = run.fit(trainer, module, data, folder=folder)
        print(json.dumps(summary))
    except (Exception, KeyboardInterrupt) as error:
        code, line = run.exit_code_and_line(error)
        print(line, file=sys.stderr)
        return code
    return 0


def rows(run_dir) -> dict[tuple[int, str], str]:
    """Return metrics.csv as {(step, metric): value as text}."""
    lines = (Path(run_dir) / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,metric,value"
    found = {}
    for line in lines[1:]:
        step, metric, value = line.split(",")
        assert (int(step), metric) not in found, line
        found[int(step), metric] = value
    return found


if __name__ == "__main__":
    run.leave(main(sys.argv[1:]))
