"""Look at the memories of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fwlight.diagnostics.comparison import Side, comparison_page
from fwlight.diagnostics.findings import Findings, find_out
from fwlight.diagnostics.interventions import Effects, intervene
from fwlight.diagnostics.layers import n_rows, some_rows
from fwlight.diagnostics.losses import sequence_losses
from fwlight.diagnostics.report import html_report
from fwlight.diagnostics.worth import Advice, advise, in_words
from fwlight.run.actions import Restored
from fwlight.training.module import TrainingModule


def diagnose(
    of: Restored,
    *,
    sequences: int,
    draws: int,
    interventions: int = 0,
    against: Restored | None = None,
) -> dict[str, Any]:
    """Look at what every layer does with test sequences, and print a line each, then the advice.

    Args:
        of: Whose module has a network with memories.
        against: Another of the same task, to be shown beside it, each on its own test sequences.
        sequences: Of the test split; more than there are is all.
        draws: Sequences with which the capacity is measured at every size; 0 leaves it out.
        interventions: Sequences of the test split on which memories are changed; 0 changes none.

    Returns:
        The report as "text", and as "output" where it goes if nothing else is said: into the run's
        folder, or else beside the checkpoint.

    Raises:
        DataError: A checkpoint was trained on other data.
    """
    options = {"sequences": sequences, "draws": draws, "interventions": interventions}
    if against is None:
        text = _report(of, **options)
        name = "diagnosis.html"
    else:
        sides = [_side(x, **options) for x in (of, against)]
        on = f"On up to {sequences} sequences of the test split, changes on {interventions}."
        text = comparison_page(sides, of=on)
        name = "comparison.html"
    folder = Path(of.path).parent
    place = folder.parent if folder.name == "checkpoints" else folder
    return {"text": text, "output": str(place / name)}


def _report(of: Restored, *, sequences: int, draws: int, interventions: int) -> str:
    """Return the page of one checkpoint."""
    findings, effects, advice = _found(of, sequences, draws, interventions)
    step = of.checkpoint.get("global_step")
    return html_report(
        findings,
        title=f"Diagnosis of {of.path}",
        of=f"step {step}, on up to {sequences} sequences of the test split",
        configuration=of.configuration,
        decode=getattr(of.data, "decode", None),
        effects=effects,
        advice=advice,
    )


def _side(of: Restored, *, sequences: int, draws: int, interventions: int) -> Side:
    """Return one half of a comparison."""
    print(f"{of.path}:", flush=True)
    findings, effects, advice = _found(of, sequences, draws, interventions)
    return Side(
        of.path,
        of.checkpoint.get("global_step"),
        sum(x.numel() for x in of.module.network.parameters()),
        sequence_losses(of.module, _first(of.data, sequences)),
        findings,
        effects,
        advice,
        of.configuration,
    )


def _found(
    of: Restored, sequences: int, draws: int, interventions: int
) -> tuple[list[Findings], list[Effects], list[Advice]]:
    """Return what there is to show, and print it in lines."""
    of.data.setup("diagnose")
    findings = look(of.module, of.data, sequences=sequences, draws=draws)
    for found in findings:
        print(f"{found.layer.name}: {found.line}", flush=True)
    effects = intervene(of.module, _first(of.data, interventions)) if interventions else []
    for layer in effects:
        print(f"{layer.layer.name}: {in_words(layer)}", flush=True)
    advice = advise(of.module.network, effects)
    for one in advice[:3]:
        print(f"to try: {one.change} in {one.layer}", flush=True)
    return findings, effects, advice


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
