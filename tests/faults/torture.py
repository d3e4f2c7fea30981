"""A training killed again and again, against the same one left alone; the result is equal or not.

python -m tests.faults.torture FOLDER [kills=25] [ranks=1] [seed=0] [steps=2000]

A kill comes after a random time of training, in all processes or in one of them, or at a random
point of a random checkpoint write. The command can itself be stopped and goes on where it was.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.faults.processes import TINY, Running, assert_same_run, run


def main(folder: Path, *, kills: int = 25, ranks: int = 1, seed: int = 0, steps: int = 2000) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    arguments = training(folder, ranks=ranks, steps=steps)
    whole, tortured = folder / "whole", folder / "tortured"
    if not (whole / "summary.json").exists():
        ended = run(
            [*arguments, f"run_dir={whole}", "resume=auto"], folder=folder / "0", timeout=900
        )
        assert ended.code == 0, ended.err
    journal = folder / "kills.json"
    done = json.loads(journal.read_text()) if journal.exists() else []
    arguments += [f"run_dir={tortured}", "resume=auto"]
    while len(done) < kills:
        done.append(one_kill(arguments, folder, random.Random(f"{seed} {len(done)}"), ranks))
        journal.write_text(json.dumps(done, indent=1))
        print(f"{len(done)}/{kills}: {done[-1]}", flush=True)
    ended = run(arguments, folder=folder / "last", timeout=900)
    assert ended.code == 0, ended.err
    assert "already complete" not in ended.out, "too few steps for so many kills"
    assert_same_run(tortured, whole)
    writes = sum(kill["in"] == "write" for kill in done)
    print(f"{kills} kills, {writes} in writes, {ranks} rank(s): equal bit for bit")
    return 0


def training(folder: Path, *, ranks: int, steps: int) -> list[str]:
    text, generator = folder / "text.txt", random.Random(0)
    words = [f"w{i}" for i in range(40)]
    lines = (" ".join(generator.choices(words, k=9)) for _ in range(300))
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    several = ["trainer=ddp", f"trainer.devices={ranks}"] if ranks > 1 else []
    return [
        *TINY,
        *several,
        f"task.path={text}",
        "trainer.accumulate_grad_batches=2",
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=20",
        "trainer.val_check_interval=70",
        "callbacks.checkpoint.every_n_train_steps=9",
    ]


def one_kill(arguments: list[str], folder: Path, chance: random.Random, ranks: int) -> dict:
    """Train on and kill; say when and where."""
    if chance.random() < 0.4:
        fault = {"kind": "write", "write": chance.randint(1, 6)}
        if chance.random() < 0.5:
            fault["bytes"] = chance.random()
        else:
            fault |= {"name": chance.randint(1, 3), "when": chance.choice(["before", "after"])}
        process = Running(arguments, folder=folder / "leg", fault=fault)
        ended = process.wait(timeout=300)
        assert ended.code == -signal.SIGKILL, (ended.code, ended.err)
        assert process.orphans(20) == []
        return {"in": "write", **fault}
    process = Running(arguments, folder=folder / "leg")
    output = folder / "leg" / "stdout"
    while "run_dir" not in (output.read_text() if output.exists() else ""):
        time.sleep(0.02)
    delay = chance.uniform(0, 2 if ranks == 1 else 9)
    time.sleep(delay)
    members = process.members()
    victims = members if ranks == 1 or chance.random() < 0.4 else [chance.choice(members)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    ended = process.wait(timeout=300)
    assert ended.code not in (0, None), "it was done before it was killed; give it more steps"
    assert process.orphans(20) == []
    return {"in": "run", "after": round(delay, 3), "killed": len(victims), "of": len(members)}


if __name__ == "__main__":
    settings = dict(argument.split("=") for argument in sys.argv[2:])
    sys.exit(main(Path(sys.argv[1]), **{key: int(value) for key, value in settings.items()}))
