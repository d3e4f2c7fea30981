"""The form of a checkpoint: the one place that says what each of its parts may hold.

`check_form` is asked of every checkpoint that is read, so that whatever takes a part of it later
may rely on names and types; `check_resumable` of one that a training goes on from. What must fit
the model or the optimiser at hand is compared there, with a fresh one.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any, str], None]
"""Raises ValueError with the place if a value is not what it should be."""


def check_form(checkpoint: Mapping[str, Any]) -> None:
    """Check whatever is there; parts of other names are their owners' own.

    Raises:
        ValueError: A part is not of its form.
    """
    for name, value in checkpoint.items():
        _PARTS.get(name, _data)(value, name)


def check_resumable(checkpoint: Mapping[str, Any], *, data: str | None) -> None:
    """Check that everything is there that a training goes on from.

    Args:
        checkpoint: Of which each part is of its form.
        data: The name of its data module, if that keeps something.

    Raises:
        ValueError: A part is missing.
    """
    for name in _PARTS_OF_A_TRAINING:
        holder, _, part = name.rpartition(".")
        if part not in (checkpoint[holder] if holder else checkpoint):
            raise ValueError(f"it has no {name}")
    if data is not None and data not in checkpoint:
        raise ValueError(f"it has no {data}")


# Forms are made of these


def _is(what: str, test: Callable[[Any], Any]) -> Check:
    def check(value: Any, where: str) -> None:
        try:
            good = test(value)
        except Exception:  # a value of another kind, which `test` is not made for
            good = False
        if not good:
            raise ValueError(f"its {where} is not {what}")

    return check


def _each(check: Check, *, least: int = 0) -> Check:
    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise ValueError(f"its {where} is not a list of {least} or more")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_all


def _named(check: Check, *, names: type = str) -> Check:
    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, dict) or any(type(name) is not names for name in value):
            raise ValueError(f"its {where} is not a mapping of names")
        for name, item in value.items():
            check(item, f"{where}.{name}")

    return check_all


def _record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Of names that are known; what others hold is not looked at."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"its {where} is not a mapping of names")
        if missing := required.keys() - value:
            raise ValueError(f"its {where} has no {min(missing)}")
        for name, part in {**required, **(optional or {})}.items():
            if name in value:
                part(value[name], f"{where}.{name}")

    return check


_any: Check = _is("anything", lambda _: True)
_count = _is("a whole number from 0", lambda x: _counts(x))
_number = _is("a number", lambda x: type(x) in (int, float))
_text = _is("a text", lambda x: type(x) is str)
_leaf = _is("plain data", lambda x: x is None or type(x) in (bool, int, float, str))
_digest = _is("a SHA-256", lambda x: re.fullmatch("[0-9a-f]{64}", x))
_version = _is("a version", lambda x: re.fullmatch(r"[2-9]\.\d+\.\d+(\.?(a|b|rc|dev|post)\d+)*", x))
_tensor = _is("a dense tensor without NaN", lambda x: _dense(x) and not x.isnan().any())


def _counts(x: Any) -> bool:
    return type(x) is int and 0 <= x < 1 << 63


def _dense(x: Tensor) -> bool:
    return x.layout == torch.strided and x.device.type == "cpu" and not x.is_quantized


def check_callbacks(states: Mapping[str, Any]) -> None:
    """Check that what callbacks keep can be read again; a reader takes plain data and tensors.

    Raises:
        ValueError: One keeps something else.
    """
    for name, state in states.items():
        _kept(state, name.partition("{")[0])


def _kept(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _kept(item, f"{where}.{name}")
    elif isinstance(value, list | tuple | set):
        _each(_kept)(list(value), where)
    elif not isinstance(value, Tensor):
        _leaf(value, where)


def _plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        _named(_plain)(value, where)
    elif isinstance(value, list | tuple):
        _each(_plain)(value, where)
    else:
        _leaf(value, where)


def _tensors(value: Any, where: str) -> None:
    """Tensors in lists and mappings, with names and numbers among them."""
    if isinstance(value, dict):
        _named(_tensors)(value, where)
    elif isinstance(value, list | tuple):
        _each(_tensors)(value, where)
    else:
        (_tensor if isinstance(value, Tensor) else _leaf)(value, where)


def _progress(value: Any, where: str) -> None:
    """Counters in nested mappings; what is completed was ready before."""
    if isinstance(value, dict):
        _named(_progress)(value, where)
        order = [value[k] for k in ("ready", "started", "processed", "completed") if k in value]
        _each(_count)(order, where)
        if order != sorted(order, reverse=True):
            raise ValueError(f"its {where} counts more completed than begun")
    elif isinstance(value, list):
        _each(_progress)(value, where)
    elif type(value) in (int, float):
        _count(value, where)
    else:
        _leaf(value, where)


def _callbacks(value: Any, where: str) -> None:
    _named(_any)(value, where)
    for name, state in value.items():  # Lightning adds what tells several of a kind apart
        _CALLBACKS.get(name.partition("{")[0], _any)(state, f"{where}.{name}")


def _data(value: Any, where: str) -> None:
    """What a data module keeps: a vocabulary, as words or as a tokenizer, is that of its hash."""
    if not isinstance(value, dict) or "vocab_hash" not in value:
        return
    _record({"fingerprint": _digest, "vocab_hash": _digest})(value, where)
    _record({}, {"vocabulary": _each(_text), "tokenizer": _text})(value, where)
    words = "\n".join(value["vocabulary"]) if "vocabulary" in value else value.get("tokenizer")
    hashed = None if words is None else hashlib.sha256(words.encode("utf-8", "replace"))
    if hashed is None or hashed.hexdigest() != value["vocab_hash"]:
        raise ValueError(f"its {where} holds another vocabulary than it was written with")


def _evaluation(value: Any, step: Any) -> bool:
    return type(value) in (int, float) and type(step) is int


def _random_numbers(value: Any) -> bool:
    """Whether `fwlight.run.rng.set_rng_state` can put it back."""
    python = value["python"]
    random.Random().setstate((python["version"], tuple(python["numbers"].tolist()), None))
    torch.Generator().set_state(value["torch"])
    cuda = value.get("cuda", torch.empty(16, dtype=torch.uint8))
    return type(python["gauss"]) in (type(None), float) and (
        cuda.dtype == torch.uint8 and cuda.shape == (16,)
    )


# The forms

_PARTS_OF_A_TRAINING = (
    *("state_dict", "global_step", "epoch", "pytorch-lightning_version", "loops", "callbacks"),
    *("optimizer_states", "lr_schedulers", "rng", "metrics", "skipped_updates"),
    *("loops.fit_loop", "callbacks.RunClock", "callbacks.RunCheckpoint"),
)
_CALLBACKS: dict[str, Check] = {
    "RunClock": _record({"wall_seconds": _number, "train_seconds": _number, "tokens": _count}),
    "RunCheckpoint": _record(
        {"best": _is("an evaluation", lambda x: x == {} or _evaluation(x["value"], x["step"]))},
        {"kept": _each(_is("an evaluation", lambda x: _evaluation(*x)))},
    ),
    "MovingAverage": _record(
        {"since": _is("a count", lambda x: x is None or _counts(x)), "losses": _each(_number)}
    ),
    "EarlyStopping": _record(
        {"wait_count": _count, "stopped_epoch": _count, "patience": _count},
        {"best_score": _is("a score", lambda x: x.shape == () and x.is_floating_point())},
    ),
}
_PARTS: dict[str, Check] = {
    "state_dict": _named(_tensor),
    "average": _named(_tensor),
    "global_step": _count,
    "epoch": _count,
    "pytorch-lightning_version": _version,
    "hyper_parameters": _is("a mapping", lambda x: x is None or isinstance(x, dict)),
    "loops": _progress,
    "callbacks": _callbacks,
    "optimizer_states": _each(
        _record(
            {
                "state": _named(_named(_tensors), names=int),
                "param_groups": _each(_record({"params": _each(_count)}), least=1),
            }
        )
    ),
    "without_state": _each(_each(_count)),
    "lr_schedulers": _each(_named(_any)),
    "MixedPrecision": _record({"scale": _number, "_growth_tracker": _count}),
    "rng": _each(_is("a state of the random numbers", _random_numbers), least=1),
    "carried": _tensors,
    "metrics": _named(_number),
    "skipped_updates": _count,
    "fwlight": _plain,
}
