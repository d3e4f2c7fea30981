"""The scaled reproduction of tables 2 to 5: `python -m reports.lm FOLDER`.

Reads config.yaml and summary.json of every run right below FOLDER, as `train.py -m
experiment=lm_mini run_dir=FOLDER` leaves them, and writes FOLDER/lm_mini.csv, lm_mini.md and
lm_mini.png. A sweep calls `report` itself when its last run is done.
"""

import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reports.sweeps import finished_runs, report_command

COLUMNS = (
    *("row", "seed", "val_ppl", "test_ppl", "test_tokens", "parameters", "state_size"),
    *("steps", "minutes"),
)
TABLES = {
    "Tables 2 and 5: models": (
        *("softmax", "linear", "performer", "sum_dpfp"),
        *("delta_linear", "delta_performer", "delta_dpfp"),
    ),
    "Table 3: positions and attention normalisation of the delta network": (
        *("delta_linear", "delta_linear_attention_norm"),
        *("delta_linear_no_positions", "delta_linear_no_positions_attention_norm"),
    ),
    "Table 4: context cut at every segment, and carried": (
        *("linear_no_positions", "linear_carried"),
        *("delta_linear_no_positions", "delta_linear_carried"),
    ),
}
PAIRS = (
    # what is compared: the second row minus the first, seed by seed
    ("delta - sum, linear", "linear", "delta_linear"),
    ("delta - sum, performer", "performer", "delta_performer"),
    ("delta - sum, dpfp", "sum_dpfp", "delta_dpfp"),
    ("dpfp - linear, sum", "linear", "sum_dpfp"),
    ("dpfp - linear, delta", "delta_linear", "delta_dpfp"),
    ("softmax - delta_dpfp", "delta_dpfp", "softmax"),
    ("softmax - linear", "linear", "softmax"),
    ("attention norm - none", "delta_linear", "delta_linear_attention_norm"),
    (
        "attention norm - none, no positions",
        "delta_linear_no_positions",
        "delta_linear_no_positions_attention_norm",
    ),
    ("no positions - positions", "delta_linear", "delta_linear_no_positions"),
    ("carried - cut, sum", "linear_no_positions", "linear_carried"),
    ("carried - cut, delta", "delta_linear_no_positions", "delta_linear_carried"),
    ("delta - sum, carried", "linear_carried", "delta_linear_carried"),
)
Row = dict[str, Any]


def report(folder: Path) -> None:
    """Write the runs as CSV, the tables and paired differences, and the figure.

    Raises:
        ValueError: If there are no finished runs of at least two rows of a table.
    """
    runs = read(folder)
    if not _tables(runs):
        raise ValueError(f"{folder} holds no finished runs of two rows of a table")
    with (folder / "lm_mini.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
    (folder / "lm_mini.md").write_text(markdown(runs), encoding="utf-8")
    draw(runs).savefig(folder / "lm_mini.png", dpi=130, bbox_inches="tight")


def read(folder: Path) -> list[Row]:
    """Return the finished runs, by row and seed."""
    runs = []
    for run, summary, config in finished_runs(folder):
        if summary.get("val/best_ppl") is None:
            continue
        runs.append(
            {
                "row": run.name.split("__")[0].removeprefix("model-"),
                "seed": config["seed"],
                "val_ppl": round(summary["val/best_ppl"], 3),
                "test_ppl": round(summary["test/ppl"], 3),
                "test_tokens": int(summary["test/tokens"]),
                "parameters": summary["parameters"],
                "state_size": summary["state_size"],
                "steps": summary["global_step"],
                "minutes": round(summary["wall_seconds"] / 60, 2),
            }
        )
    return sorted(runs, key=lambda run: (run["row"], run["seed"]))


def markdown(runs: Sequence[Row]) -> str:
    """Return a table of every table's rows, then the paired differences."""
    lines: list[str] = []
    for title, found in _tables(runs).items():
        lines += [f"**{title}**", "", "| row | seeds | val ppl | test ppl | state | minutes |"]
        lines.append("|---|---|---|---|---|---|")
        for row in found:
            mine = _of(runs, row)
            state = mine[0]["state_size"]
            cells = [f"`{row}`", f"{len(mine)}"]
            cells += [_spread([run[key] for run in mine]) for key in ("val_ppl", "test_ppl")]
            cells.append("grows" if state is None else f"{state:,}")
            cells.append(f"{statistics.mean(run['minutes'] for run in mine):.1f}")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    pairs = [(title, _differences(runs, *rows)) for title, *rows in PAIRS]
    if any(found for _, found in pairs):
        lines += ["**Paired differences of the test perplexity, per cent of the second**", ""]
        lines += ["| second - first, seed by seed | mean | spread | by seed |", "|---|---|---|---|"]
    for title, found in pairs:
        if found:
            by_seed = ", ".join(f"{value:+.1f}" for value in found)
            spread = f"{statistics.stdev(found):.1f}" if len(found) > 1 else "-"
            lines.append(f"| {title} | {statistics.mean(found):+.1f} | {spread} | {by_seed} |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Row]) -> Figure:
    """Return one panel a table: a dot for each run, a line at the mean."""
    tables = _tables(runs)
    figure = Figure(figsize=(8, 1.2 + 0.42 * sum(map(len, tables.values()))), layout="constrained")
    heights = [len(rows) for rows in tables.values()]
    panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=heights)
    for panel, (title, rows) in zip(panels[:, 0], tables.items(), strict=True):
        for y, row in enumerate(rows):
            found = [run["test_ppl"] for run in _of(runs, row)]
            colour = "C1" if row.startswith("delta") else "C7" if row == "softmax" else "C0"
            panel.plot(found, [y] * len(found), "o", color=colour, alpha=0.7)
            mean = statistics.mean(found)
            panel.plot([mean, mean], [y - 0.3, y + 0.3], color=colour)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_title(title, fontsize="medium", loc="left")
        panel.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("test perplexity; a dot for each seed, a line at their mean")
    return figure


def _tables(runs: Sequence[Row]) -> dict[str, list[str]]:
    """Return the rows of each table that have runs; a table with less than two has none."""
    found = {title: [row for row in rows if _of(runs, row)] for title, rows in TABLES.items()}
    return {title: rows for title, rows in found.items() if len(rows) > 1}


def _of(runs: Sequence[Row], row: str) -> list[Row]:
    return [run for run in runs if run["row"] == row]


def _differences(runs: Sequence[Row], first: str, second: str) -> list[float]:
    """Return second - first in per cent of the second, for every seed that both have."""
    ppl = [{run["seed"]: run["test_ppl"] for run in _of(runs, row)} for row in (first, second)]
    return [
        100 * (ppl[1][seed] - ppl[0][seed]) / ppl[1][seed]
        for seed in sorted(ppl[0].keys() & ppl[1].keys())
    ]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the table; the exit code."""
    return report_command(arguments, report, table="lm_mini.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
