"""Kernels by the loss they leave, from finished runs: `python -m reports.kernels FOLDER`.

Reads what `train.py -m experiment=kernels run_dir=FOLDER` leaves and writes kernels.md into FOLDER:
a row for each kernel, the loss after the last update of language models on test text and of a
memory of n keys, means over seeds with their range.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from reports.sweeps import finished_runs, report_command


def report(folder: Path) -> None:
    """Write the table.

    Raises:
        ValueError: There is no finished run of a language model or a memory of keys.
    """
    losses: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    carried: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run, summary, config in finished_runs(folder):
        keys = config["task"].get("n_keys")
        if summary.get("test/loss") is None:
            continue
        kernel = run.name.partition("__")[0]
        losses[kernel][f"{keys} keys" if keys else "text"].append(summary["test/loss"])
        size = f"{summary['state_size']:,}" if summary["state_size"] else "all"
        carried[kernel, "keys" if keys else "text"].add(size)
    if not losses:
        raise ValueError(f"{folder} holds no finished run of experiment=kernels")
    columns = sorted({name for found in losses.values() for name in found}, key=_order)
    heads = ["kernel", "numbers carried", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for kernel in sorted(losses, key=lambda kernel: mean(losses[kernel][columns[0]] or [0.0])):
        sizes = ", ".join(", ".join(sorted(carried[kernel, of])) for of in ("text", "keys"))
        cells = [_cell(losses[kernel][name]) for name in columns]
        lines.append("| " + " | ".join([f"`{kernel}`", sizes, *cells]) + " |")
    (folder / "kernels.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _order(column: str) -> tuple[bool, int]:
    count = column.partition(" ")[0]
    return column != "text", int(count) if count.isdigit() else 0


def _cell(found: Sequence[float]) -> str:
    if not found:
        return ""
    spread = f" ({min(found):.4f} to {max(found):.4f})" if len(found) > 1 else ""
    return f"{mean(found):.4f}{spread}"


def main(arguments: Sequence[str]) -> int:
    """Write the report and print the table; the exit code."""
    return report_command(arguments, report, table="kernels.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
