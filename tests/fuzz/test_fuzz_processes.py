"""train.py started strangely: without streams, or as one of several that were told other things."""

import contextlib
import os
import random
import runpy
import sys

import pytest

from cli.building import build_callbacks, build_parts
from cli.composition import compose_config
from cli.stored import leaves
from fwlight.errors import FwlightError
from tests.faults.processes import CONTEXT, ROOT, of_torchrun

RETRIEVAL = [
    *("task=retrieval", "task.n_keys=4", "model=linear", "callbacks=none", "logger=none"),
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "task.batch_size=4"),
]
WAYS = {"stdin": ("open", "closed"), "stdout": ("open", "closed", "full", "broken")}
WAYS["stderr"] = WAYS["stdout"]


def be(words, folder, streams=None, environment=None):
    """Be a process of train.py, with the standard streams that it finds or does not find."""
    os.chdir(folder)
    os.environ.update(environment or {})
    for number, name in enumerate(WAYS):
        way = (streams or {}).get(name, "open")
        if way == "closed":
            os.close(number)
            setattr(sys, name, None)
            continue
        if way == "broken":
            unread, descriptor = os.pipe()
            os.close(unread)
        else:
            path = "/dev/full" if way == "full" else f"{folder}/{name}"
            descriptor = os.open(path, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for ever)
    sys.argv, sys.path = [str(ROOT / "train.py"), *words], [str(ROOT), *sys.path]
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    with contextlib.suppress(AttributeError):  # as Python ends
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            code = 120
    os._exit(code)


def started(words, folder, **settings):
    """A process, and the files of its streams."""
    folder.mkdir()
    for name in WAYS:
        (folder / name).touch()
    process = CONTEXT.Process(target=be, args=(words, str(folder)), kwargs=settings)
    process.start()
    return process


def ended(process, folder) -> tuple[int, str, str]:
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running: {(folder / 'stderr').read_text()}")
    return process.exitcode, *((folder / name).read_text() for name in ("stdout", "stderr"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "output"
    code, _, err = ended(started([*RETRIEVAL, f"run_dir={folder}/run"], folder), folder)
    assert code == 0, err
    return folder / "run" / "checkpoints" / "last.ckpt"


COMMANDS = {  # code, whether what is printed is the result
    "config": (["--cfg", "size=tiny"], 0, True),
    "help": (["--help"], 0, True),
    "points": (["-m", "--cfg", "seed=1,2"], 0, True),
    "train": ([*RETRIEVAL, "run_dir=run"], 0, False),
    "test": (["action=test", "ckpt={checkpoint}"], 0, True),
    "bad": (["size=huge"], 2, False),
    "gone": (["action=test", "ckpt=gone.ckpt"], 4, False),
    "NaN": ([*RETRIEVAL, "optimizer.lr=1e30", "trainer.max_steps=9", "run_dir=run"], 3, False),
}


def test_lost_streams_change_no_exit_code(request, tmp_path, checkpoint):
    chance, n = random.Random(0), 300 if request.config.getoption("--full") else 8
    for number in range(n):
        command = list(COMMANDS)[number % len(COMMANDS)]
        words, code, is_result = COMMANDS[command]
        streams = {name: chance.choice(ways) for name, ways in WAYS.items()}
        folder = tmp_path / str(number)
        words = [word.format(checkpoint=checkpoint) for word in words]
        got, out, err = ended(started(words, folder, streams=streams), folder)
        if is_result and streams["stdout"] == "full":
            code = 5
        assert got == code, (command, streams, err)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0 and streams["stderr"] == "open"), (command, streams, err)
        assert "Traceback" not in err + out, (command, streams, err)
        assert not out or streams["stdout"] == "open"
        if command == "train":
            assert (folder / "run" / "summary.json").is_file()


# Two processes of a launcher

TWO = [*RETRIEVAL, "trainer=ddp", "trainer.devices=2", "rank_timeout=30", "run_dir=../run"]
OF_A_MACHINE = ("run_dir", "resume", "output", "task.num_workers")
SHAPE = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator")
"""What decides whether processes meet at all."""


def two(words, others, folder, port):
    """Codes and errors of two processes, the second of which is told something else."""
    folder.mkdir()
    processes = []
    for rank, told in enumerate((words, others)):
        environment = of_torchrun(rank, port)
        processes.append(started(told, folder / str(rank), environment=environment))
    return [ended(process, folder / str(rank)) for rank, process in enumerate(processes)]


def differences(chance):
    """An argument that gives a key another value, and the key, over and over."""
    config = compose_config(TWO).config
    values = dict(leaves(config))
    while True:
        key = chance.choice(sorted(values.keys() - {*OF_A_MACHINE, *SHAPE}))
        old = values[key]
        if isinstance(old, bool):
            new = str(not old).lower()
        elif isinstance(old, int | float):
            new = str(chance.choice([old + 1, old * 2, old - 1]))
        else:
            new = chance.choice(["1", "none", "null", "0.5"])
        try:
            composition = compose_config([*TWO, f"{key}={new}"])
            build_parts(composition.config)
            build_callbacks(composition.config)
        except FwlightError:
            continue
        if dict(leaves(composition.config))[key] != old:
            yield f"{key}={new}", key


def test_processes_told_the_same_train_and_others_name_the_difference(request, tmp_path, free_port):
    for code, _, err in two(TWO, [*TWO, "task.num_workers=1"], tmp_path / "same", free_port):
        assert code == 0, err
    n, others = 40 if request.config.getoption("--full") else 1, differences(random.Random(0))
    for number in range(n):
        argument, key = next(others)
        results = two(TWO, [*TWO, argument], tmp_path / str(number), free_port)
        for code, _, err in results:
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert code == 2, (argument, line)
            assert f"{key}=" in line, (argument, line)
            assert "in rank 1: all processes" in line
        assert not (tmp_path / str(number) / "run").exists(), argument


def test_processes_that_would_each_train_alone_are_refused(tmp_path, free_port):
    alone = [*TWO, "trainer=cpu", "trainer.devices=1"]
    for code, _, err in two(alone, alone, tmp_path / "alone", free_port):
        assert code == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "started 2 processes, but this trainer is for 1" in line
    assert not (tmp_path / "alone" / "run").exists()
