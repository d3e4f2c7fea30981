"""The runs of a retrieval sweep as one CSV, one figure beside the published curves, and one table.

    python -m reports.retrieval runs/retrieval_capacity capacity [CSV ...]

A sweep calls `report` itself when its last run is done. CSVs of other sweeps, on other machines for
example, add the runs that the folder does not hold.
"""

import csv
import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from reports.sweeps import finished_runs, read_config, read_curve

PUBLISHED = Path(__file__).parent / "published" / "retrieval.yaml"
SOLVED = 1e-3
TRAINING_CURVES_AT = {"capacity": 600, "update": 20}
"""Numbers of keys at which the paper shows losses against steps (figures 4 and 3)."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    curve: str
    n_keys: int
    seed: int
    steps: int
    best_loss: float
    last_loss: float
    test_loss: float
    seconds: float


def report(folder: Path, *, setting: str, tables: Sequence[Path] = ()) -> None:
    """Write retrieval.csv, retrieval.png, learning.png, table.md and TensorBoard's images of both.

    Losses against steps, in learning.png, are known of the folder's own runs alone.

    Args:
        folder: Of the sweep.
        setting: `capacity` or `update`: which published curves to lay ours over.
        tables: Each the retrieval.csv of another sweep; of a run in several the folder's counts,
            then the first one's.
    """
    found: dict[tuple[str, int, int], Run] = {}
    for run in itertools.chain(read_runs(folder, setting), *map(read_table, tables)):
        found.setdefault((run.curve, run.seed, run.n_keys), run)
    runs = [found[key] for key in sorted(found)]
    if not runs:
        raise ValueError(f"{folder} holds no finished run of a retrieval sweep")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "retrieval.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Run))
        writer.writerows(astuple(run) for run in runs)
    published = published_losses(setting)
    text = table(runs, published)
    (folder / "table.md").write_text(text, encoding="utf-8")
    figure = draw(runs, published, title=f"Retrieval, {setting}")
    figure.savefig(folder / "retrieval.png", dpi=130)
    learning = draw_learning(folder, TRAINING_CURVES_AT[setting], colours_of(runs))
    learning.savefig(folder / "learning.png", dpi=130)
    with SummaryWriter(str(folder)) as board:
        board.add_figure(f"retrieval/{setting}", figure)
        board.add_figure(f"retrieval/{setting}_learning", learning)
    print(text)


def read_runs(folder: Path, setting: str) -> list[Run]:
    """Return the finished runs under a sweep's folder.

    Raises:
        ValueError: If one of them has the other setting.
    """
    runs = []
    for run, summary, config in finished_runs(folder):
        if "n_keys" not in config["task"]:
            continue
        if config["task"]["setting"] != setting:
            raise ValueError(f"{run} has setting={config['task']['setting']}, not {setting}")
        best, last, test = (
            math.nan if summary[name] is None else summary[name]
            for name in ("val/best_loss", "val/loss", "test/loss")
        )
        runs.append(
            Run(
                curve=run.name.split("__")[0],
                n_keys=config["task"]["n_keys"],
                seed=config["seed"],
                steps=summary["global_step"],
                best_loss=best,
                last_loss=last,
                test_loss=test,
                seconds=round(summary["wall_seconds"], 1),
            )
        )
    return runs


def read_table(path: Path) -> list[Run]:
    """Return the runs of a CSV that `report` wrote."""
    types = get_type_hints(Run)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(types):
            raise ValueError(f"{path} is no table of retrieval runs, with {', '.join(types)}")
        try:
            return [Run(**{name: types[name](row[name]) for name in types}) for row in reader]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def published_losses(setting: str) -> dict[str, dict[int, float]]:
    """Return the published best loss of every curve and number of keys."""
    curves: dict[str, list[float]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[setting]
    return {
        name: {20 * (i + 1): float(loss) for i, loss in enumerate(losses)}
        for name, losses in curves.items()
    }


def losses_of(runs: list[Run]) -> dict[str, dict[int, list[float]]]:
    """Return the best losses of all seeds, by curve and number of keys; infinite if not finite."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.n_keys):
        found[run.curve][run.n_keys].append(
            math.inf if math.isnan(run.best_loss) else run.best_loss
        )
    return found


def solved_up_to(losses: dict[int, float]) -> int:
    """Return the largest number of keys up to which every point reaches 0.001; 0 for none."""
    largest = 0
    for n_keys in sorted(losses):
        if not losses[n_keys] <= SOLVED:
            break
        largest = n_keys
    return largest


def table(runs: list[Run], published: dict[str, dict[int, float]]) -> str:
    """Return a Markdown table: how far each curve is solved, and its share of solved points."""
    lines = [
        "| curve | runs | largest S with all S up to it solved | published | points solved | "
        "published | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve, by_keys in losses_of(runs).items():
        ours = {n_keys: statistics.median(losses) for n_keys, losses in by_keys.items()}
        theirs = published.get(curve, {})
        mine = [run for run in runs if run.curve == curve]
        cells: list[Any] = [curve, len(mine), solved_up_to(ours) or "none"]
        cells.append((solved_up_to(theirs) or "none") if theirs else "-")
        cells += [_share(ours), _share(theirs) if theirs else "-"]
        lines.append(f"| {' | '.join(map(str, cells))} | {sum(run.steps for run in mine):,} |")
    return "\n".join(lines) + "\n"


def colours_of(runs: list[Run]) -> dict[str, Any]:
    """Return a colour for every curve, the same in all figures of a report."""
    shades = [plt.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
    return dict(zip(sorted({run.curve for run in runs}), itertools.cycle(shades), strict=False))


def draw(runs: list[Run], published: dict[str, dict[int, float]], *, title: str) -> Figure:
    """Return a figure: loss against the number of keys, linear as in the paper and logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(15, 6.5), layout="constrained")
    colours = colours_of(runs)
    for curve, by_keys in losses_of(runs).items():
        colour = colours[curve]
        n_keys = list(by_keys)
        medians = [statistics.median(losses) for losses in by_keys.values()]
        for axis in axes:
            axis.plot(n_keys, medians, marker="o", markersize=3, color=colour, label=curve)
            low, high = ([f(losses) for losses in by_keys.values()] for f in (min, max))
            axis.fill_between(n_keys, low, high, color=colour, alpha=0.25, linewidth=0)
            if curve in published:
                axis.plot(*zip(*published[curve].items(), strict=True), "--", color=colour, lw=1)
    axes[0].set_title(f"{title}: best loss, median and range over seeds; dashed: published")
    axes[0].set_ylim(-0.02, 0.62)
    axes[1].set_yscale("log")
    axes[1].axhline(SOLVED, color="black", linewidth=0.8)
    axes[1].set_title("the same, logarithmic; the line is the loss at which a run stops")
    for axis in axes:
        axis.set_xlabel("number of keys S")
        axis.set_ylabel("loss |y - v|² / 2")
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", fontsize="small")
    return figure


def draw_learning(folder: Path, n_keys: int, colours: dict[str, Any]) -> Figure:
    """Return a figure: validation loss against steps of every curve's seed 1 at one S."""
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for path in sorted(folder.glob(f"*__task.n_keys-{n_keys}*/metrics.csv")):
        try:
            config, points = read_config(path.parent), read_curve(path.parent, "val/loss")
        except (OSError, ValueError):
            continue
        if config["task"]["n_keys"] != n_keys or config["seed"] != 1:
            continue
        curve = path.parent.name.split("__")[0]
        if points:
            axis.plot(*zip(*points, strict=True), color=colours.get(curve), label=curve)
    axis.set(title=f"S = {n_keys}", xlabel="step", ylabel="validation loss", yscale="log")
    if axis.lines:
        axis.axhline(SOLVED, color="black", linewidth=0.8)
        axis.legend(fontsize="small")
    return figure


def _share(losses: dict[int, float]) -> str:
    return f"{sum(loss <= SOLVED for loss in losses.values())} of {len(losses)}"


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in ("capacity", "update"):
        raise SystemExit("usage: python -m reports.retrieval FOLDER capacity|update [CSV ...]")
    try:
        report(Path(sys.argv[1]), setting=sys.argv[2], tables=list(map(Path, sys.argv[3:])))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
