"""Evaluate a checkpoint."""

from typing import Any

from fwlight.errors import ConfigError
from fwlight.lightning_internals import leave_signals_alone
from fwlight.run.actions import Restored
from fwlight.run.text import as_text, say

_TEMPERATURES = [0.8 + i / 100 for i in range(40)]


def test(
    of: Restored,
    *,
    temperature: float | str = 1.0,  # noqa: PT028 - an action, no test of pytest's
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Args:
        of: The checkpoint.
        temperature: What a language model's output layer reads is divided by it; "valid": by the
            best for the validation split, from 0.80 to 1.19, of which each is tried until one is
            worse than the one before it (Schlag et al. 2021a).

    Returns:
        All `test/` metrics, the `global_step` of the checkpoint and, of a text, which it was; also
        the curves that a run keeps in metrics.csv alone, which are not printed. With another
        temperature than 1, that as well.

    Raises:
        DataError: It was trained on another kind of data.
        ConfigError: There is no temperature.
    """
    if temperature == "valid":
        temperature = _best_temperature(of)
    if temperature != 1:
        of.module.temper(float(temperature))
    _evaluate(of)
    measured = {k: v for k, v in of.module.latest.items() if k.startswith("test/")}
    results = {**measured, "global_step": of.checkpoint.get("global_step")}
    if temperature != 1:
        results["temperature"] = temperature
    if text := getattr(of.data, "tested_text", ""):
        results["tested_text"] = text
    say(as_text(results))
    curves = {k: v for k, v in of.module.details.items() if k.startswith("test/")}
    return {**results, **curves}


def _best_temperature(of: Restored) -> float:
    """Return the temperature with the lowest loss on the validation split."""
    if (split := getattr(of.data, "test_split", None)) is None:
        raise ConfigError("test.temperature=valid is of language models")
    of.data.test_split = "valid"
    losses: list[float] = []
    for temperature in _TEMPERATURES:
        of.module.temper(temperature)
        _evaluate(of)
        losses.append(of.module.latest["test/loss"])
        if losses[-1] > min(losses):
            break
    of.data.test_split = split
    of.module.temper(1.0)
    return _TEMPERATURES[losses.index(min(losses))]


def _evaluate(of: Restored) -> None:
    of.data.setup("test")
    trainer = of.trainer()
    leave_signals_alone(trainer)
    trainer.test(of.module, datamodule=of.data, verbose=False)
