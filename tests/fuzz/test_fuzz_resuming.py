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
from tests.faults.processes import equal
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


def mutate(checkpoint, seed, within=None, *, no_exchange=False):
    """Change one place of a checkpoint, or of a part of it; return what was done, in words."""
    chance = random.Random(seed)
    top = within or chance.choice(list(checkpoint))
    container, key = chance.choice([(checkpoint, top), *places(checkpoint[top], [])])
    kinds = ("replace", "replace", "remove", "rename", "exchange")
    kind = chance.choice(kinds[:4] if no_exchange else kinds)
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


def outcomes(request, tmp_path, stored, change):
    """Resume from changed checkpoints; yield what was changed, and the folder of those that go on.

    `change` takes a checkpoint and a seed and says what it did.
    """
    n, path = 100 if request.config.getoption("--full") else 6, tmp_path / "x.ckpt"
    for seed in range(n):
        checkpoint, folder = copy.deepcopy(stored), tmp_path / f"run{seed}"
        done = change(checkpoint, seed)
        torch.save(checkpoint, path)
        try:
            resume(path, folder)
        except Exception as error:
            code, line = exit_code_and_line(error)
            assert code == 4, (seed, done, line)
            assert len(line.splitlines()) == 1
            assert str(path) in line, (seed, done, line)
            yield done, None
        else:
            yield done, folder


@pytest.mark.fault(35)
def test_changed_content_is_resumed_or_refused(request, tmp_path, stored):
    ended = [folder for _, folder in outcomes(request, tmp_path, stored, mutate)]
    assert ended.count(None) > len(ended) / 3


def learned(folder):
    """What a training ends with: weights and the optimiser's state."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    states = last["optimizer_states"][0]
    return {**last["state_dict"], "state": states["state"], "groups": states["param_groups"]}


OPTIONS = {"lr": 9.0, "betas": (0.0, 0.0), "eps": 1.0, "weight_decay": 5.0, "maximize": True}
OPTIONS |= {"amsgrad": True, "fused": None, "foreach": True, "capturable": True, "x": [1]}
OPTIONS |= {"differentiable": True, "decoupled_weight_decay": False, "initial_lr": -1.0}


def mutate_optimizer(checkpoint, seed):
    """Change the optimiser's state or options; exchange only what is of different shapes."""
    chance, (stored,) = random.Random(seed), checkpoint["optimizer_states"]
    state, kind = stored["state"], seed % 4
    if kind == 0:
        return mutate(checkpoint, chance.randrange(1 << 30), "optimizer_states", no_exchange=True)
    if kind == 1:
        option = chance.choice(list(OPTIONS))
        for group in stored["param_groups"]:
            group[option] = OPTIONS[option]
        return f"option {option}"
    one, name = chance.choice(list(state)), chance.choice(["exp_avg", "exp_avg_sq", "step"])
    if kind == 2:
        old = state[one][name]
        values = [old + torch.inf, -torch.ones(()), old[..., None]]
        values += [old - 1e9] if name != "exp_avg" else []  # which may be anything
        state[one][name] = chance.choice(values)
        return f"value {one}.{name}"
    shape = state[one]["exp_avg"].shape
    others = [other for other in state if state[other]["exp_avg"].shape != shape]
    other = chance.choice([*others, 10_000])
    state[one], state[other] = state.get(other, {}), state[one]
    return f"exchange {one} {other}"


@pytest.mark.fault(35)
def test_changed_optimizer_states_are_refused_or_change_no_value(request, tmp_path, stored):
    whole = tmp_path / "whole.ckpt"
    torch.save(stored, whole)
    resume(whole, tmp_path / "whole")
    want, refused = learned(tmp_path / "whole"), 0
    for done, folder in outcomes(request, tmp_path, stored, mutate_optimizer):
        refused += folder is None
        assert folder is None or equal(learned(folder), want), done
    assert refused
