"""Runs beside one another: what differs between them, and how well each did."""

import csv
import difflib
import io
from collections.abc import Callable, Sequence
from typing import Any

from fwlight.durations import duration
from fwlight.errors import ConfigError, printable
from fwlight.runs.reading import FINISHED, Run, lower_is_better
from fwlight.runs.texts import KEYS, as_typed, setting, texts_of

_OF_MODELS = ("encoder", "decoder", "cross", "alternate")
"""Sections that a model fills, the run's or one of their own."""
_MOST_KEYS = 8
"""In a table for people; a CSV has all."""
_FIXED: dict[str, Callable[[Run], Any]] = {
    "status": lambda run: run.status,
    "step": lambda run: run.step,
    "seconds": lambda run: run.seconds,
    "tokens_per_second": lambda run: run.tokens_per_second,
    "error": lambda run: run.error,
}


class _Columns:
    """The columns that runs can have: what all know of them, settings by key, and metrics.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.data = texts_of(runs)
        self._data_of = {id(run): data for run, data in zip(runs, self.data, strict=True)}
        keys = dict.fromkeys(key for run in runs for key in run.settings)
        # What other keys fill repeats them.
        self.settings = [key for key in keys if not key.startswith(("network.", "module."))]
        self.metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))

    def find(self, name: str) -> str:
        """Return the column of a name, which may be the end of a key: of the least deep one.

        Raises:
            ConfigError: There is none, or several.
        """
        known = [*_FIXED, "data", *self.settings, *self.metrics]
        if name in known:
            return name
        ends = [key for key in self.settings if key.rpartition(".")[2] == name]
        depth = min((key.count(".") for key in ends), default=0)
        if len(least := [key for key in ends if key.count(".") == depth]) == 1:
            return least[0]
        near = ends or difflib.get_close_matches(name, known, n=1)
        guess = f"; did you mean {' or '.join(near[:4])}?" if near else ""
        raise ConfigError(f"no run has {name}{guess}")

    def value(self, run: Run, column: str) -> Any:
        """Return what a run has in a column, None for nothing."""
        if column in _FIXED:
            return _FIXED[column](run)
        if column == "data":
            return self._data_of[id(run)]
        if column in self.settings:
            return setting(run, column)
        return run.metrics.get(column)

    def differing(self) -> list[str]:
        """Return the keys that runs have different values of, but for what follows from others.

        A key that a run lacks differs in nothing: its options have no such key. What the chosen
        option of the key's group decides is not told beside it, nor what task, experiment and row
        decide.
        """
        rows = {key: [as_typed(setting(run, key)) for run in self.runs] for key in self.settings}
        several = [key for key, row in rows.items() if len({*row} - {""}) > 1]
        shown: list[str] = []
        # Options first, as they decide others.
        for key in sorted(several, key=lambda key: ("." in key, "/" in key or "@" in key)):
            parts = key.replace("/", ".").replace("@", ".").split(".")
            groups = {"/".join(parts[:n]) for n in range(1, len(parts))}
            deciding = (groups | {"task", "experiment", "row"}) - {key}
            if parts[0] in _OF_MODELS:
                deciding |= {"model", f"model@{parts[0]}"}
            if any(_repeats(rows[key], rows[x]) for x in shown):
                continue
            if not any(x in several and _decides(rows[x], rows[key]) for x in deciding):
                shown.append(key)
        return shown

    def results(self) -> list[str]:
        """Return the metrics that say how good the runs are: monitored ones, and of their tasks."""
        names = dict.fromkeys(run.monitor for run in self.runs if run.metrics)
        own = [x for x in ("ppl", "acc", "bleu") if {f"val/{x}", f"test/{x}"} & {*self.metrics}]
        names = list(dict.fromkeys([*names, *own]))
        found = [x for name in names for x in (f"val/best_{name}", f"test/{name}")]
        found = [x for x in found if x in self.metrics]
        told = {x.replace("ppl", "loss") for x in found if "ppl" in x}
        always = all(
            f"{split}/ppl" in run.metrics or f"{split}/loss" not in run.metrics
            for run in self.runs
            for split in ("val", "test")
        )
        return [x for x in found if not (always and x in told)]

    def best_first(self) -> str | None:
        """Return what these runs are ranked by unless something else is asked for."""
        kinds = {(run.monitor, run.settings.get("task")) for run in self.runs if run.settings}
        best = [f"val/best_{monitor}" for monitor, _ in kinds]
        return best[0] if len(best) == 1 and best[0] in self.metrics else None


def as_text(
    runs: Sequence[Run],
    *,
    sort: str | None = None,
    columns: Sequence[str] | None = None,
    keys: Sequence[str] = (),
) -> str:
    """Return a table for people.

    Args:
        runs: At least one.
        sort: A column; None is the monitored metric where all runs have the same, else the name.
        columns: Those beside name and status; None is what differs and how well the runs did. What
            they were trained on is added where it differs: it is never ranked without a word.
        keys: Settings that are shown first, as they are known to differ.

    Raises:
        ConfigError: No run has such a column.
    """
    known = _Columns(runs)
    found = [key for key in keys if key in known.settings]
    found = list(dict.fromkeys([*found, *known.differing()]))
    most = max(_MOST_KEYS, len(keys))
    more = found[most:]
    if columns is None:
        chosen = ["step", *found[:most], *known.results(), "seconds", "tokens_per_second"]
    else:
        chosen, more = [known.find(name) for name in columns], []
    chosen = _with_data(chosen, known)
    ordered = _sorted(known, sort)
    heads = {column: _head(column, chosen) for column in chosen}
    table = [["run", "status", *heads.values()]]
    for run in ordered:
        cells = [_cell(column, known.value(run, column), run) for column in chosen]
        table.append([printable(run.name), run.status, *cells])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    numbers = [False, False, *(_is_of_numbers(known, column) for column in chosen)]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in table
    ]
    lines += [f"{printable(run.name)}: {run.error}" for run in ordered if run.error]
    if more:
        lines.append(f"{len(more)} more keys differ (--columns shows them): {', '.join(more)}")
    return "\n".join(lines) + "\n"


def as_csv(
    runs: Sequence[Run], *, sort: str | None = None, columns: Sequence[str] | None = None
) -> str:
    """Return everything that differs and every metric as CSV, or the columns; else as `as_text`."""
    known = _Columns(runs)
    if columns is None:
        ends = ("seconds", "tokens_per_second", "error")
        chosen = ["data", "step", *known.differing(), *known.metrics, *ends]
    else:
        chosen = _with_data([known.find(name) for name in columns], known)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "status", *chosen])
    for run in _sorted(known, sort):
        values = [known.value(run, column) for column in chosen]
        cells = [x if isinstance(x, str) else as_typed(x) for x in values]
        writer.writerow([run.name, run.status, *cells])
    return text.getvalue()


def _with_data(columns: Sequence[str], known: _Columns) -> list[str]:
    """Add what runs were trained on where it differs, for the keys that say a part of it."""
    if len({*known.data} - {""}) < 2:
        return list(columns)
    parts = {"task", "data", *(f"task.{key}" for key in KEYS)}
    return ["data", *(column for column in columns if column not in parts)]


def _decides(one: Sequence[str], other: Sequence[str]) -> bool:
    """Say whether runs with equal values of one key have equal values of another, if they have any.

    Those of earlier versions lack the options.
    """
    pairs = {pair for pair in zip(one, other, strict=True) if all(pair)}
    return len(pairs) == len({value for value, _ in pairs})


def _repeats(one: Sequence[str], other: Sequence[str]) -> bool:
    """Say whether a key has the value of another wherever it has one."""
    return all(a in ("", b) for a, b in zip(one, other, strict=True))


def _sorted(known: _Columns, sort: str | None) -> list[Run]:
    column = known.find(sort) if sort is not None and sort != "run" else known.best_first()
    if sort == "run" or column is None:
        return sorted(known.runs, key=lambda run: run.name)
    sign = 1 if column not in known.metrics or lower_is_better(column) else -1

    def place(run: Run) -> tuple[Any, ...]:
        value = known.value(run, column)
        if isinstance(value, int | float) and value == value:
            return (0, sign * value, run.name)
        return (2 if value is None else 1, as_typed(value), run.name)

    return sorted(known.runs, key=place)


def _head(column: str, others: Sequence[str]) -> str:
    """Return a column's name, of a setting its end if that is enough."""
    end = column.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == end for other in others) == 1
    short = {"seconds": "time", "tokens_per_second": "tokens/s"}
    return short.get(column, printable(end if alone else column))


def _is_of_numbers(known: _Columns, column: str) -> bool:
    values = [known.value(run, column) for run in known.runs]
    return all(isinstance(x, int | float) for x in values if x is not None)


def _cell(column: str, value: Any, run: Run) -> str:
    if value is None:
        return ""
    if column == "step" and run.status != FINISHED and run.max_steps:
        return f"{value}/{run.max_steps}"
    if column == "seconds":
        return duration(value)
    if column == "tokens_per_second":
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return printable(as_typed(value))
