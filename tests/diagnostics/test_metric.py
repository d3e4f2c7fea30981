"""Statistics over processes: the same values however the data are spread."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwlight.diagnostics import Statistics
from fwlight.diagnostics.metric import LayerStatistics
from tests.diagnostics import gloo

ROOT = Path(__file__).resolve().parents[2]


def test_one_two_and_three_processes_agree_on_uneven_data(tmp_path, free_port):
    command = [sys.executable, "-m", "tests.diagnostics.gloo", str(free_port), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    alone, calls, _ = gloo.joined(gloo.SHARES[1][0])
    assert calls == []
    assert set(alone) == {"a", "b"}
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for rank, world in ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)):
        values, calls, kept = found[rank][world]
        assert [op.split(".")[-1] for op in calls] == ["SUM", "MAX"]
        for layer, named in alone.items():
            for name, x in named.items():
                torch.testing.assert_close(
                    values[layer][name], x, rtol=1e-9, atol=1e-12, equal_nan=True
                )
        assert (kept == 0) == (rank == 2)


def test_metric_starts_anew_after_a_reset():
    metric = LayerStatistics({"a": gloo.statistics([])})
    metric.update({"a": gloo.statistics([0])})
    metric.reset()
    metric.update({"a": gloo.statistics([1, 2])})
    found, expected = metric.layers()["a"], gloo.statistics([1, 2])
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], x) for name, x in other.items())


def test_metric_refuses_what_it_was_not_made_for():
    metric = LayerStatistics({"a": gloo.statistics([])})
    with pytest.raises(ValueError, match="not made for"):
        metric.update({"b": gloo.statistics([0])})
    wrong = gloo.statistics([0])
    wrong.sums["load/count"] = torch.zeros(3)
    with pytest.raises(ValueError, match="load/count has shape"):
        metric.update({"a": wrong})


def test_single_heads_keep_their_dimension():
    one = Statistics({"x": torch.ones(1)}, {"y": torch.ones(1)})
    metric = LayerStatistics({"a": one})
    metric.update({"a": one})
    assert metric.layers()["a"].sums["x"].shape == (1,)
    assert metric.layers()["a"].maxima["y"].tolist() == [1]
