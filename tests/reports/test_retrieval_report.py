import json
import statistics
from math import inf, nan

import pytest
import yaml

from reports.retrieval import (
    Run,
    draw_learning,
    losses_of,
    published_losses,
    report,
    solved_up_to,
)


@pytest.fixture
def sweep(tmp_path):
    """Two seeds of a curve that is solved up to S = 40, and a run that has not finished."""
    for seed, losses in ((1, (4e-4, 9e-4, 0.02)), (2, (5e-4, 2e-3, 0.03)), (3, (1e-4, 8e-4, 0.01))):
        for n_keys, loss in zip((20, 40, 60), losses, strict=True):
            folder = tmp_path / f"linear__task.n_keys-{n_keys}__seed-{seed}"
            folder.mkdir()
            summary = {
                "val/best_loss": loss,
                "val/loss": 2 * loss,
                "test/loss": None if n_keys == 60 else loss,
                "global_step": 700,
                "wall_seconds": 1.25,
            }
            (folder / "summary.json").write_text(json.dumps(summary))
            config = {"seed": seed, "task": {"n_keys": n_keys, "setting": "capacity"}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "linear__task.n_keys-80__seed-1").mkdir()
    return tmp_path


def test_report_of_a_sweep(sweep, capsys):
    report(sweep, setting="capacity")
    rows = (sweep / "retrieval.csv").read_text().splitlines()
    assert rows[0] == "curve,n_keys,seed,steps,best_loss,last_loss,test_loss,seconds"
    assert len(rows) == 10
    assert rows[1] == "linear,20,1,700,0.0004,0.0008,0.0004,1.2"
    assert rows[3].split(",")[6] == "nan"
    # the median of three decides: 0.0009 at 40 keys
    assert "| linear | 9 | 40 | 40 | 2 of 3 | 2 of 30 | 6,300 |" in capsys.readouterr().out
    assert (sweep / "retrieval.png").stat().st_size > 10_000
    assert list(sweep.glob("events.out.tfevents.*"))


def test_report_adds_the_runs_of_tables(sweep, tmp_path_factory):
    report(sweep, setting="capacity")
    rows = (sweep / "retrieval.csv").read_text().splitlines()
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    (first / "a.csv").write_text("\n".join([*rows[:5], "dpfp1,20,1,100,0.5,0.6,0.7,9.0"]))
    (first / "b.csv").write_text("\n".join([rows[0], *rows[5:], "dpfp1,20,1,200,0.1,0.1,nan,9.0"]))
    report(second / "both", setting="capacity", tables=[first / "a.csv", first / "b.csv"])
    merged = (second / "both" / "retrieval.csv").read_text().splitlines()
    assert merged == [rows[0], "dpfp1,20,1,100,0.5,0.6,0.7,9.0", *rows[1:]]
    # and what a folder holds goes before what a table says of it
    (first / "a.csv").write_text(f"{rows[0]}\nlinear,20,1,1,0.9,0.9,0.9,9.0")
    report(sweep, setting="capacity", tables=[first / "a.csv"])
    assert (sweep / "retrieval.csv").read_text().splitlines() == rows


def test_a_folder_of_the_other_setting_is_refused(sweep):
    with pytest.raises(ValueError, match="has setting=capacity, not update"):
        report(sweep, setting="update")


def test_a_run_without_a_finite_loss_counts_as_the_worst():
    runs = [Run("linear", 20, seed, 1, loss, 1, 1, 1) for seed, loss in enumerate((nan, 1e-4, nan))]
    assert statistics.median(losses_of(runs)["linear"][20]) == inf


def test_learning_curves_are_those_of_seed_1_at_one_size(tmp_path):
    for n_keys, seed in ((20, 1), (20, 2), (20, 10), (200, 1)):
        folder = tmp_path / f"linear__task.n_keys-{n_keys}__seed-{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"seed": seed, "task": {"n_keys": n_keys}})
        )
        (folder / "metrics.csv").write_text(f"step,metric,value\n{n_keys},val/loss,0.{seed}\n")
    curve, *rest, _ = draw_learning(tmp_path, 20, {"linear": "red"}).axes[0].lines
    assert (list(curve.get_xdata()), list(curve.get_ydata()), rest) == ([20], [0.1], [])
    assert curve.get_color() == "red"
    # of a run that did not finish there is a curve, but no row and so no colour
    assert len(draw_learning(tmp_path, 20, {}).axes[0].lines) == 2


def test_a_cut_off_table_is_refused_with_its_line(sweep):
    report(sweep, setting="capacity")
    table = sweep / "retrieval.csv"
    table.write_text(table.read_text()[:-30])
    with pytest.raises(ValueError, match=r"retrieval\.csv, line 10: "):
        report(sweep, setting="capacity", tables=[table])


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="is no table of retrieval runs"):
        report(tmp_path, setting="capacity", tables=[tmp_path / "other.csv"])


def test_report_without_runs_says_so(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        report(tmp_path, setting="capacity")


@pytest.mark.parametrize(
    ("losses", "largest"),
    [
        ({20: 1e-3, 40: 5e-4, 60: 0.1, 80: 1e-4}, 40),
        ({20: 0.2, 40: 1e-4}, 0),
        ({20: float("nan")}, 0),
        ({}, 0),
    ],
)
def test_solved_means_every_point_up_to_it(losses, largest):
    assert solved_up_to(losses) == largest


def test_published_capacities_are_the_papers():
    capacity = {name: solved_up_to(losses) for name, losses in published_losses("capacity").items()}
    assert capacity["linear"] == 40
    assert [capacity[f"dpfp{nu}"] for nu in (1, 2, 3)] == [100, 240, 340]
    assert capacity["softmax"] == 340
    assert capacity["favor512_reference"] == 0
    assert all(len(losses) == 10 for losses in published_losses("update").values())
