"""train.py with a fault built in, which the environment variable FAULT describes.

FAULT='{"kind": "kill", "step": 13, "rank": 1}' python tests/faults/injected.py key=value ...
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from lightning import Callback

from cli.main import main
from fwlight import run
from fwlight.lightning_internals import completes_update
from tasks.text import encoding
from tests.faults import changes

FAULT = json.loads(os.environ["FAULT"])


class Wound(Callback):
    """Does what FAULT says at the start of a step, on one rank or on all."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 != FAULT["step"] or not completes_update(trainer):
            return
        if FAULT.get("rank") in (None, trainer.global_rank):
            getattr(self, FAULT["kind"])(pl_module)

    def kill(self, module):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, module):
        os.kill(os.getpid(), signal.SIGSTOP)

    def signals(self, module):
        for name in FAULT["signals"]:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.2)

    def fail(self, module):
        raise RuntimeError("the wound hurts")

    def refuse(self, module):
        raise ValueError("this rank does not like its data")

    def leave(self, module):
        os._exit(7)

    def nan(self, module):
        value = float(FAULT.get("value", "nan"))
        module.network.output.register_forward_hook(lambda *_: _[2] * value)

    def nan_once(self, module):
        self._hook = module.network.output.register_forward_hook(lambda *_: _[2] * float("nan"))

    def on_train_batch_end(self, *_):
        if hasattr(self, "_hook"):
            self._hook.remove()

    def gradient(self, module):
        next(module.network.parameters()).register_hook(lambda g: g * float("inf"))

    def fill(self, module):
        """Leave no byte free on the file system of a file."""
        with open(FAULT["file"], "wb", buffering=0) as file:
            while True:
                try:
                    if not file.write(b"0" * 4096):
                        return
                except OSError:
                    return

    def announce(self, module):
        Path(FAULT["file"]).touch()
        time.sleep(FAULT.get("seconds", 30))


def wound_writes() -> None:
    """Die in the n-th write of a checkpoint, at a share of its bytes or around a rename."""
    import torch

    original_save, original_replace, count = torch.save, os.replace, {"writes": 0, "names": 0}

    def save(data, file, *arguments, **settings):
        if not str(getattr(file, "name", "")).endswith(".partial"):
            return original_save(data, file, *arguments, **settings)  # what ranks tell each other
        count["writes"] += 1
        count["names"] = 0
        original_save(data, file, *arguments)
        if count["writes"] == FAULT["write"] and "bytes" in FAULT:
            share = FAULT["bytes"]
            file.truncate(share if isinstance(share, int) else int(file.tell() * share))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(source, target):
        count["names"] += 1
        due = count["writes"] == FAULT["write"] and count["names"] == FAULT.get("name")
        if due and FAULT["when"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original_replace(source, target)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save, os.replace = save, replace


def wound_setup() -> None:
    """Fail before training, on one rank."""
    from tasks.lm import LanguageModelingDataModule

    def setup(self, stage=None):
        raise ValueError("there is no data for this rank")

    if int(os.environ.get("LOCAL_RANK", 0)) == FAULT["rank"]:
        LanguageModelingDataModule.setup = setup


def wound_start() -> None:
    """Put a callback that does it before all others."""
    original = run.run_callbacks

    def run_callbacks(*arguments, **settings):
        return [Wound(), *original(*arguments, **settings)]

    run.run_callbacks = run_callbacks


encoding.CACHED_FROM = FAULT.pop("cached_from", encoding.CACHED_FROM)
match FAULT["kind"]:
    case "none":
        pass
    case "change":
        changes.wound(**{key: value for key, value in FAULT.items() if key != "kind"})
    case "arguments":
        if int(os.environ.get("LOCAL_RANK", 0)) == FAULT["rank"]:
            sys.argv[1:] = [*sys.argv[1:], *FAULT["arguments"]]  # the last of a key counts
    case "write":
        wound_writes()
    case "setup":
        wound_setup()
    case _:
        wound_start()

if __name__ == "__main__":
    sys.exit(main())
