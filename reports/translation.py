"""Attentions in translation beside softmax: `python -m reports.translation FOLDER`.

Reads summary.json of every run right below FOLDER, as `train.py -m
experiment=translation_multi30k_comparison run_dir=FOLDER` leaves them, and writes
FOLDER/translation.csv and translation.md. The sweep calls `report` when its last run is done.
"""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.sweeps import finished_runs, report_command

SCORES = ("bleu", "bleu_lowercase", "chrf", "exact_match", "ppl")
COLUMNS: tuple[str, ...] = ("row", "run", *SCORES, "parameters", "steps", "minutes")
BASELINE = "softmax"
Row = dict[str, Any]


def report(folder: Path) -> None:
    """Write the table of a sweep's finished runs in both forms.

    Raises:
        ValueError: If there is no finished run of the translation task.
    """
    rows = read(folder)
    if not rows:
        raise ValueError(f"{folder} holds no finished run of task=translation")
    with (folder / "translation.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "translation.md").write_text(markdown(rows), encoding="utf-8")


def read(folder: Path) -> list[Row]:
    """Return a row for each finished run, in the order of their names."""
    rows: list[Row] = []
    for run, summary, _ in finished_runs(folder):
        if summary.get("test/bleu") is None:
            continue
        scores = {name: summary[f"test/{name}"] for name in SCORES}
        rows.append(
            {
                "row": run.name.split("__")[0],
                "run": run.name,
                **scores,
                "parameters": summary["parameters"],
                "steps": summary["global_step"],
                "minutes": summary["wall_seconds"] / 60,
            }
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return the table: means over seeds, BLEU of each, and the difference to softmax's mean.

    Beside a difference stands how far apart the seeds of softmax are, where it has several: what
    is smaller says nothing.
    """
    runs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row["row"]].append(row)
    softmax = [row["bleu"] for row in runs.get(BASELINE, [])]
    apart = f" (seeds: {max(softmax) - min(softmax):.1f} apart)" if len(softmax) > 1 else ""
    heads = ("row", "BLEU", "of each seed", f"- {BASELINE}{apart}", "lower case", "chrF", "ppl")
    heads += ("steps", "minutes")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in sorted(runs, key=lambda name: (name != BASELINE, -_mean(runs[name], "bleu"))):
        of_row = runs[name]
        bleu = _mean(of_row, "bleu")
        difference = f"{bleu - statistics.mean(softmax):+.1f}" if softmax else ""
        cells = [f"`{name}`", f"{bleu:.1f}", ", ".join(f"{row['bleu']:.1f}" for row in of_row)]
        cells += ["" if name == BASELINE else difference]
        cells += [f"{_mean(of_row, key):.1f}" for key in ("bleu_lowercase", "chrf")]
        cells += [f"{_mean(of_row, 'ppl'):.2f}", f"{_mean(of_row, 'steps'):,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{_mean(of_row, 'minutes'):.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the table; the exit code."""
    return report_command(arguments, report, table="translation.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
