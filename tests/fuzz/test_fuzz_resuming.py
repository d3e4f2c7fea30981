"""Checkpoints whose content is not what a training wrote: refused with one line, or gone on from.

Every part is replaced, removed, renamed or exchanged in turn, whole archives with right check sums;
see test_fuzz.py for damaged bytes.
"""

import copy
import random

import pytest
import torch

from fwlight import run
from fwlight.run import exit_code_and_line
from tests.run import standin

STEPS = 6


def resume(path, folder, **settings):
    """Go on for two steps from a file, in this process."""
    parts = standin.parts(
        standin.Settings(
            run_dir=str(folder), resume=str(path), max_steps=STEPS + 2, samples=0, **settings
        )
    )
    return run.fit(parts[1], parts[2], parts[3], folder=parts[0])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The checkpoint of a short training, with an evaluation and best copies."""
    run.quiet()
    folder = tmp_path_factory.mktemp("stored") / "run"
    settings = standin.Settings(
        run_dir=str(folder), max_steps=STEPS, val_every=3, samples=0, best=2
    )
    parts = standin.parts(settings)
    run.fit(parts[1], parts[2], parts[3], folder=parts[0])
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def replacements(chance, old):
    """A value of another kind, shape or type than a part has."""
    others = [None, True, -1, 2.5, 10**30, "x", [], {}, {"x": 1}, torch.zeros(3), float("nan")]
    if isinstance(old, torch.Tensor):
        others = [old.double(), old.long(), old.repeat(*[2] * max(old.ndim, 1)), old.flatten()[:0]]
        others += [torch.full_like(old, torch.nan) if old.is_floating_point() else -old.long()]
        others += [old.to("meta"), old[None], None, 0, "x", {}, [old]]
    return chance.choice(others)


def places(value, found):
    """Every container within a value, with how to get at each of its parts."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        found.extend((value, key) for key in keys)
        for key in keys:
            places(value[key], found)
    return found


def mutate(checkpoint, seed, within=None):
    """Change one place of a checkpoint, or of a part of it; return what was done, in words."""
    chance = random.Random(seed)
    top = within or chance.choice(list(checkpoint))
    container, key = chance.choice([(checkpoint, top), *places(checkpoint[top], [])])
    kind = chance.choice(("replace", "replace", "remove", "rename", "exchange"))
    if kind == "remove" or (kind == "rename" and isinstance(container, list)):
        del container[key]
    elif kind == "rename":
        container[f"{key}x"] = container.pop(key)
    elif kind == "exchange":
        keys = list(container) if isinstance(container, dict) else range(len(container))
        other = chance.choice(list(keys))
        container[key], container[other] = container[other], container[key]
    else:
        container[key] = replacements(chance, container[key])
    return f"{kind} {top} ... {key}"


@pytest.mark.parametrize("within", [None, "optimizer_states"])
def test_changed_content_is_resumed_or_refused(request, tmp_path, stored, within):
    n, path = 200 if request.config.getoption("--full") else 6, tmp_path / "x.ckpt"
    ended = []
    for seed in range(n):
        checkpoint = copy.deepcopy(stored)
        done = mutate(checkpoint, seed, within)
        torch.save(checkpoint, path)
        try:
            resume(path, tmp_path / f"run{seed}")
            ended.append(0)
        except Exception as error:
            code, line = exit_code_and_line(error)
            assert code == 4, (seed, done, line)
            assert len(line.splitlines()) == 1
            assert str(path) in line, (seed, done, line)
            ended.append(code)
    # Options of the optimiser, which are the configuration's, may say what they like.
    assert ended.count(4) > n / 3
