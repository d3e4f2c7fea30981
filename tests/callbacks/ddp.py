"""Real training runs whose watchers are compared over processes: the script of test_ddp.py.

Runs every case below in one process, or in each process that torchrun started, and notes the
collectives of every run.
"""

import os
import sys
from pathlib import Path

import torch

import cli.building
from cli.main import main
from fwlight.run import leave

COMMON = (
    *("size.dropout=0", "size.d_ff=32", "trainer.max_steps=4", "trainer.log_every_n_steps=1"),
    *(
        "trainer.val_check_interval=4",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    ),
    *("optimizer.warmup_steps=1", "diagnostics.every_n_steps=2", "diagnostics.sequences=null"),
    *("callbacks.progress=null", "callbacks.text_samples=null", "logger=none"),
)
TINY = ("size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8")
LM = ("task=lm", "task.data=text", "task.batch_size=4", "task.seq_len=24", *TINY)
CASES = {
    "lm": LM,
    "lm_few": (*LM, "diagnostics.sequences=2", "model=softmax"),
    "lm_compiled": (*LM, "model=deltanet"),
    # The weights as good as fixed: bf16 gradients depend on how the batch is divided, and with them
    # where training goes; what is seen of equal weights must not.
    "lm_bf16": (*LM, "trainer.precision=bf16-mixed", "optimizer.lr=1e-12"),
    "retrieval": ("task=retrieval", "task.n_keys=9", "task.batch_size=4", "size.d_head=8"),
    "translation": ("task=translation", "task.batch_tokens=400", *TINY),
}


def run(folder: Path) -> None:
    """Run every case into a folder of its own."""
    text = folder.parent / "text.txt"
    build_parts = cli.building.build_parts
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    calls: list[str] = []
    reduce = torch.distributed.all_reduce

    def counted(x, op=torch.distributed.ReduceOp.SUM, **options):
        if x.numel() > 2:  # training adds up two numbers a step
            calls.append(str(op).split(".")[-1])
        return reduce(x, op, **options)

    torch.distributed.all_reduce = counted
    for name, arguments in CASES.items():

        def parts(*args, name=name, **options):
            module, data = build_parts(*args, **options)
            if name.endswith("compiled"):
                module.network.compile(backend="eager")
            return module, data

        cli.building.build_parts = parts
        known = [x for x in COMMON if not (name == "retrieval" and x.startswith("size."))]
        words = [*known, *arguments, f"run_dir={folder / name}"]
        words += [f"task.path={text}"] if "task=lm" in arguments else []
        words += ["trainer=ddp", f"trainer.devices={world_size}"] if world_size > 1 else []
        given = {}
        for word in words:  # the last one counts
            given[word.partition("=")[0]] = word
        calls.clear()
        code = main(list(given.values()))
        (folder / f"{name}.calls").write_text(" ".join(calls))
        if code:
            print(f"{name}: {code}", file=sys.stderr)
            leave(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
    leave(0)
