"""Recall against state size of finished runs: `python -m reports.mqar FOLDER`.

Reads config.yaml and summary.json of every run right below FOLDER, as `train.py -m
experiment=mqar run_dir=FOLDER` leaves them, and writes FOLDER/mqar.csv, mqar.md and mqar.png.
"""

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.sweeps import finished_runs, report_command

COLUMNS = (
    *("model", "short_conv", "beta_max", "seed", "d_model", "n_layers", "n_heads", "d_head"),
    *("state_size", "parameters", "steps", "minutes"),
)
Row = dict[str, Any]


def report(folder: Path) -> None:
    """Write the table of a sweep's finished runs in both forms, and the figure.

    Raises:
        ValueError: If there is no finished run of the recall task.
    """
    rows = read(folder)
    if not rows:
        raise ValueError(f"{folder} holds no finished run of task=mqar")
    accuracies = [name for name in rows[0] if name.startswith("acc")]
    with (folder / "mqar.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *accuracies], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "mqar.md").write_text(markdown(rows, accuracies), encoding="utf-8")
    draw(rows, accuracies[1:]).savefig(folder / "mqar.png", dpi=150, bbox_inches="tight")


def read(folder: Path) -> list[Row]:
    """Return a row for each finished run, by model, convolution and state size."""
    rows = []
    for run, summary, config in finished_runs(folder):
        if summary.get("test/acc") is not None:
            rows.append(_row(run.name, config, summary))
    return sorted(rows, key=lambda row: [row[key] for key in ("model", "short_conv", "state_size")])


def markdown(rows: Sequence[Row], accuracies: Sequence[str]) -> str:
    """Return the table."""
    heads = ("model", "short_conv", "d_head", "state size", "minutes", *map(_title, accuracies))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"`{_label(row)}`", f"{row['short_conv']}", f"{row['d_head']}"]
        cells += [f"{row['state_size']:,}", f"{row['minutes']:.1f}"]
        cells += [f"{100 * row[name]:.1f}" for name in accuracies]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], slices: Sequence[str]) -> Figure:
    """Return one panel for each number of pairs: accuracy against state size, a line per model.

    Lines with a short convolution are solid, those without dashed; runs that differ in their seed
    are averaged.
    """
    figure = Figure(figsize=(4 * len(slices) + 1.5, 3.6))
    panels = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
    labels = sorted({_label(row) for row in rows})
    colours = {label: f"C{number}" for number, label in enumerate(labels)}
    for panel, name in zip(panels, slices, strict=True):
        for label in labels:
            for conv in (False, True):
                of_line = [r for r in rows if _label(r) == label and bool(r["short_conv"]) == conv]
                sizes = sorted({row["state_size"] for row in of_line})
                heights = [
                    mean(row[name] for row in of_line if row["state_size"] == size)
                    for size in sizes
                ]
                style = "-" if conv else "--"
                panel.plot(sizes, heights, style, color=colours[label], marker="o", markersize=4)
        panel.set(xscale="log", xlabel="numbers carried per sequence", title=_title(name))
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy", ylim=(-0.03, 1.03))
    lines = [Line2D([], [], color=colour, label=label) for label, colour in colours.items()]
    lines.append(Line2D([], [], color="grey", linestyle="-", label="short_conv"))
    lines.append(Line2D([], [], color="grey", linestyle="--", label="no short_conv"))
    figure.legend(handles=lines, loc="center left", bbox_to_anchor=(0.92, 0.5), frameon=False)
    return figure


def _row(name: str, config: Row, summary: Row) -> Row:
    model, size = config["model"], config["size"]
    found = re.search(r"(?:^|__)model-(\w+?)(?:__|$)", name)
    tests = {key.removeprefix("test/"): value for key, value in summary.items() if "test/" in key}
    return {
        "model": found[1] if found else name.split("__")[0],
        "short_conv": model["short_conv"],
        "beta_max": model.get("beta_max", 1.0),
        "seed": config["seed"],
        **{key: size[key] for key in ("d_model", "n_layers", "n_heads", "d_head")},
        "state_size": summary["state_size"] or _cache_size(config),
        "parameters": summary["parameters"],
        "steps": summary["global_step"],
        "minutes": summary["wall_seconds"] / 60,
        **{key: tests[key] for key in sorted(tests, key=_numbers) if key.startswith("acc")},
    }


def _cache_size(config: Row) -> int:
    """Numbers that softmax attention carries at the end of a sequence: k, v and the tail."""
    size, conv = config["size"], config["model"]["short_conv"]
    width = size["n_heads"] * size["d_head"]
    tail = 3 * (conv - 1) * width if conv else 0
    return size["n_layers"] * (2 * width * config["task"]["seq_len"] + tail)


def _label(row: Row) -> str:
    return row["model"] + ("" if row["beta_max"] == 1 else f", beta_max={row['beta_max']:g}")


def _title(name: str) -> str:
    return "all" if name == "acc" else f"{name.removeprefix('acc_pairs_')} pairs"


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the table; the exit code."""
    return report_command(arguments, report, table="mqar.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
