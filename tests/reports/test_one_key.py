"""The figure of a sweep of one key."""

import sys

from fwlight.runs import Run
from reports.one_key import draw, report


def run(value, name="val/best_loss"):
    return Run(name=f"{value}", status="finished", metrics={} if value is None else {name: value})


def test_numbers_are_places_and_equal_values_are_averaged():
    values = [("1e-4", 3.0), ("1e-2", 1.0), ("1e-3", 2.0), ("1e-3", 4.0)]
    (panel,) = draw("optimizer.lr", "val/best_loss", values).axes
    (line,) = panel.lines
    assert [*line.get_xdata()] == [1e-4, 1e-3, 1e-2]
    assert [*line.get_ydata()] == [3.0, 3.0, 1.0]
    assert panel.collections[0].get_offsets().tolist() == [[float(x), y] for x, y in values]
    assert panel.get_xscale() == "log"
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("optimizer.lr", "val/best_loss")


def test_words_have_a_place_each_and_no_line():
    (panel,) = draw("model", "val/best_acc", [("linear", 0.5), ("kda", 0.7)]).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["linear", "kda"]
    assert panel.lines[0].get_linestyle() == "None"


def test_runs_without_a_result_are_left_out(tmp_path):
    pairs = [("1", run(2.0)), ("2", run(None)), ("3", run(1.0))]
    assert f"{tmp_path / 'sweep.png'}" in report(tmp_path, "seed", pairs)
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert report(tmp_path / "none", "seed", pairs[:2]) is None


def test_without_matplotlib_there_is_a_line(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = report(tmp_path, "seed", [("1", run(2.0)), ("2", run(1.0))])
    assert line.endswith("is not drawn: it needs matplotlib (pip install 'fwlight[plots]')")
    assert not list(tmp_path.iterdir())
