"""Evaluate a checkpoint."""

from typing import Any

from fwlight.lightning_internals import leave_signals_alone
from fwlight.run.actions import Restored
from fwlight.run.text import as_text, say


def test(of: Restored) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Returns:
        All `test/` metrics, the `global_step` of the checkpoint and, of a text, which it was; also
        the curves that a run keeps in metrics.csv alone, which are not printed.

    Raises:
        DataError: It was trained on another kind of data.
    """
    of.data.setup("test")
    trainer = of.trainer()
    leave_signals_alone(trainer)
    trainer.test(of.module, datamodule=of.data, verbose=False)
    measured = {k: v for k, v in of.module.latest.items() if k.startswith("test/")}
    results = {**measured, "global_step": of.checkpoint.get("global_step")}
    if text := getattr(of.data, "tested_text", ""):
        results["tested_text"] = text
    say(as_text(results))
    curves = {k: v for k, v in of.module.details.items() if k.startswith("test/")}
    return {**results, **curves}
