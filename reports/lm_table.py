"""Tabulate finished language-model runs: `python -m reports.lm_table FOLDER`.

Every folder below FOLDER that holds a summary.json is a row: its place, the model, its size, steps
and perplexities, best validation first within each parent folder. The output is Markdown.
"""

import sys
from pathlib import Path
from typing import Any

from reports.sweeps import finished_runs

COLUMNS = ("model", "parameters", "steps", "val ppl", "test ppl", "minutes")


def rows(folder: Path) -> dict[Path, list[dict[str, Any]]]:
    """Return the finished runs below a folder by parent folder, lowest `val/best_ppl` first."""
    groups: dict[Path, list[dict[str, Any]]] = {}
    for run, summary, config in finished_runs(folder, pattern="**"):
        if summary.get("val/best_ppl") is None:
            continue
        groups.setdefault(run.parent, []).append(
            {"name": _model_name(run.name), "summary": summary, "config": config}
        )
    for group in groups.values():
        group.sort(key=lambda row: row["summary"]["val/best_ppl"])
    return groups


def markdown(folder: Path) -> str:
    """Return one table a parent folder."""
    lines = []
    for parent, group in rows(folder).items():
        lines += [f"**{parent.name}**", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("|" + "---|" * len(COLUMNS))
        for row in group:
            summary = row["summary"]
            cells = (
                f"`{row['name']}`",
                f"{summary['parameters']:,}",
                f"{summary['global_step']:,}",
                f"{summary['val/best_ppl']:.1f}",
                f"{summary['test/ppl']:.1f}",
                f"{summary['wall_seconds'] / 60:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _model_name(folder: str) -> str:
    """Take the model out of a sweep's folder name such as `model-delta_dpfp`."""
    return folder.removeprefix("model-")


def main(argv: list[str]) -> int:
    """Print the tables; the exit code."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("error: name one folder with finished runs", file=sys.stderr)
        return 2
    text = markdown(Path(argv[0]))
    if not text:
        print(f"error: {argv[0]} holds no finished run (no summary.json)", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
