"""Looking at the memories of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fwlight.diagnostics.findings import Findings, find_out
from fwlight.diagnostics.layers import n_rows, some_rows
from fwlight.diagnostics.report import html_report
from fwlight.run.actions import restore
from fwlight.training.module import TrainingModule


def diagnose(
    module: TrainingModule,
    data: Any,
    *,
    ckpt: str | Path,
    configuration: str,
    sequences: int,
    draws: int,
) -> str:
    """Look at what every layer does with test sequences; print a line each, return the report.

    Args:
        module: A module whose network has memories.
        data: The checkpoint's data.
        ckpt: The checkpoint.
        configuration: Text that the report ends with.
        sequences: Of the test split; more than there are is all.
        draws: Sequences with which the capacity is measured at every size; 0 leaves it out.

    Raises:
        CheckpointError: It is missing, damaged or of another model.
        DataError: It was trained on other data.
    """
    checkpoint = restore(module, data, ckpt)
    findings = look(module, data, sequences=sequences, draws=draws)
    for found in findings:
        print(f"{found.layer.name}: {found.line}", flush=True)
    step = checkpoint.get("global_step")
    return html_report(
        findings,
        title=f"Diagnosis of {ckpt}",
        of=f"step {step}, on up to {sequences} sequences of the test split",
        configuration=configuration,
        decode=getattr(data, "decode", None),
    )


def look(module: TrainingModule, data: Any, *, sequences: int, draws: int) -> list[Findings]:
    """Return what is found of every layer on test sequences; arguments as of `diagnose`."""
    return find_out(module, _first(data, sequences), draws=draws)


def _first(data: Any, n: int) -> Iterator[Any]:
    """Yield test batches, the last one cut, of `n` sequences together."""
    for batch in data.test_dataloader():
        yield some_rows(batch, slice(n))
        n -= n_rows(batch)
        if n <= 0:
            return
