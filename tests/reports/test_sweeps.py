"""Reading what runs leave, where some of it is damaged."""

import json

import pytest

from reports.retrieval import draw_learning
from reports.sweeps import finished_runs, read_curve


@pytest.fixture
def sweep(tmp_path):
    """Three finished runs."""
    for seed in (1, 2, 3):
        run = tmp_path / f"linear__task.n_keys-20__seed-{seed}"
        run.mkdir()
        (run / "summary.json").write_text(json.dumps({"seed": seed}))
        (run / "config.yaml").write_text(f"seed: {seed}\ntask: {{n_keys: 20}}\n")
        (run / "metrics.csv").write_text("step,metric,value\n10,val/loss,0.5\n20,val/loss,0.25\n")
    return tmp_path


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 3000, b"3", b"a: : b", None])
def test_damaged_runs_are_left_out_with_a_warning_each(sweep, capsys, name, content):
    damaged = sweep / "linear__task.n_keys-20__seed-2"
    (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
    found = list(finished_runs(sweep))
    assert [run.summary["seed"] for run in found] == [run.config["seed"] for run in found] == [1, 3]
    told = capsys.readouterr().err.splitlines()
    if (name, content) == ("summary.json", None):  # it is not finished
        assert not told
    else:
        (line,) = told
        assert line.startswith(f"warning: {damaged} is left out (")


def test_curve_lacks_damaged_rows_alone(sweep):
    run = sweep / "linear__task.n_keys-20__seed-1"
    rows = (run / "metrics.csv").read_bytes()
    damage = (
        b"12,val/loss,0.\xff\n\xff\xfe\nx,val/loss,1\n,,\n14,val\xff/loss,1.0\n15,train/loss,3\n"
    )
    (run / "metrics.csv").write_bytes(rows + damage + b"30,val/loss,0.125\n40,val/lo")
    assert read_curve(run, "val/loss") == [(10, 0.5), (20, 0.25), (30, 0.125)]
    (line, _) = draw_learning(sweep, 20, {}).axes[0].lines
    assert [*line.get_ydata()] == [0.5, 0.25, 0.125]
