"""What memories can compute, from finished runs: `python -m reports.abilities FOLDER`.

Reads config.yaml and summary.json of every run right below FOLDER, as `train.py -m
experiment=abilities run_dir=FOLDER`, and the experiments mad and recurrent_mini, leave them, and
writes abilities.csv, abilities.md and abilities.png into FOLDER: a row for each model, a column for
each ability.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from reports.sweeps import finished_runs, report_command

Row = dict[str, Any]
COLUMNS = ("model", "ability", "settings", "seed", "score", "state_size", "parameters", "steps")
MAD = ("compression", "fuzzy", "recall", "memorisation", "noisy", "selective_copy")


def report(folder: Path) -> None:
    """Write the table of a sweep's finished runs in both forms, and the figure.

    Raises:
        ValueError: If there is no finished run of a task whose answers are counted.
    """
    rows = read(folder)
    if not rows:
        raise ValueError(f"{folder} holds no finished run of a task with answers")
    with (folder / "abilities.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "minutes"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "abilities.md").write_text(markdown(rows), encoding="utf-8")
    draw(rows).savefig(folder / "abilities.png", dpi=150, bbox_inches="tight")


def read(folder: Path) -> list[Row]:
    """Return a row for each ability that a finished run shows, by model and ability."""
    rows = []
    for run, summary, config in finished_runs(folder):
        settings = summary.get("settings", {})
        for ability, metric in _abilities(settings.get("task"), config):
            if (score := summary.get(f"test/{metric}")) is not None:
                rows.append(
                    {
                        "model": _model(settings, config),
                        "ability": ability,
                        "settings": run.name,
                        "seed": config["seed"],
                        "score": score,
                        "state_size": summary["state_size"],
                        "parameters": summary["parameters"],
                        "steps": summary["global_step"],
                        "minutes": round(summary["wall_seconds"] / 60, 2),
                    }
                )
    return sorted(rows, key=lambda row: (row["model"], row["ability"], row["seed"]))


def scores(rows: Sequence[Row], model: str, ability: str) -> list[float]:
    """Return the score of every seed: of runs that differ otherwise, the best."""
    chosen = [row for row in rows if (row["model"], row["ability"]) == (model, ability)]
    seeds = sorted({row["seed"] for row in chosen})
    return [max(row["score"] for row in chosen if row["seed"] == seed) for seed in seeds]


def markdown(rows: Sequence[Row]) -> str:
    """Return the table: mean over seeds, and the range in brackets where there are several.

    Where all problems of MAD are there, their mean too.
    """
    models, abilities = _names(rows, "model"), _names(rows, "ability")
    whole = set(MAD) <= set(abilities)
    heads = ["model", "numbers carried", *abilities, *["mean of MAD"] * whole]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for model in models:
        sizes = sorted({row["state_size"] or 0 for row in rows if row["model"] == model})
        carried = ", ".join(f"{size:,}" if size else "grows" for size in sizes)
        cells = [_cell(scores(rows, model, ability)) for ability in abilities]
        found = [scores(rows, model, problem) for problem in MAD]
        if whole:
            cells.append(f"{mean(map(mean, found)):.3f}" if all(found) else "")
        lines.append("| " + " | ".join([f"`{model}`", carried, *cells]) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row]) -> Figure:
    """Return the table as a picture: the darker a field, the higher the mean score."""
    models, abilities = _names(rows, "model"), _names(rows, "ability")
    figure = Figure(figsize=(1.1 * len(abilities) + 2.2, 0.42 * len(models) + 1.6))
    panel = figure.subplots()
    means = [
        [
            mean(found) if (found := scores(rows, model, ability)) else float("nan")
            for ability in abilities
        ]
        for model in models
    ]
    panel.imshow(means, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, line in enumerate(means):
        for x, value in enumerate(line):
            if value == value:
                colour = "white" if value > 0.6 else "black"
                panel.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    panel.set_xticks(range(len(abilities)), [ability.replace(", ", "\n") for ability in abilities])
    panel.set_yticks(range(len(models)), models)
    panel.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for label in panel.get_xticklabels():
        label.set_fontsize(8)
    panel.spines[:].set_visible(False)
    return figure


def _abilities(task: str | None, config: Row) -> list[tuple[str, str]]:
    """Return what a run shows: a name, and the metric that says how well."""
    if task == "state_tracking":
        problem, trained = config["task"]["problem"], config["task"]["train_length"][1]
        longest = config["task"]["test_lengths"][-1]
        return [
            (f"{problem}, to {trained}", f"scaled_acc_length_{trained}"),
            (f"{problem}, {trained + 1} to {longest}", "scaled_acc_beyond"),
        ]
    if task == "mqar":
        return [(f"MQAR, {n} pairs", f"acc_pairs_{n}") for n in config["task"]["n_pairs"]]
    if task == "code_execution":
        lengths = config["task"]["test_statements"]
        if not lengths:
            return [(f"programs of {config['task']['n_statements']}", "acc_sequence")]
        return [(f"programs of {n}", f"acc_sequence_statements_{n}") for n in lengths]
    if task == "listops":
        return [(f"ListOps, depth {config['task']['depth']}", "acc")]
    return [(config["task"]["problem"], "acc")] if task == "mad" else []


def _model(settings: Row, config: Row) -> str:
    """The model's name, and what else decides what it can track."""
    model = config["model"]
    name = settings.get("model", "?")
    if alternate := settings.get("model@alternate"):
        name += f" + {alternate}"
    if model.get("beta_max", 1) not in (1, None):
        name += f", beta_max={model['beta_max']:g}"
    if settings.get("task") in ("code_execution", "listops") and model.get("short_conv"):
        name += f", short_conv={model['short_conv']}"
    return name


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _cell(found: Sequence[float]) -> str:
    if not found:
        return ""
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{mean(found):.3f}{spread}"


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the table; the exit code."""
    return report_command(arguments, report, table="abilities.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
