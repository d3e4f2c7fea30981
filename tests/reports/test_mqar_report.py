"""The report of a sweep, from folders as runs leave them."""

import csv
import json

import pytest
import yaml

from cli.building import build
from cli.composition import compose_config
from reports.mqar import main, read, report

RUNS = [  # what the sweep changes, accuracy on 4 and on 16 pairs
    ({"model": "softmax", "model.short_conv": "0"}, 0.99, 0.98),
    ({"model": "softmax", "model.short_conv": "4"}, 1.0, 0.97),
    ({"model": "deltanet", "model.short_conv": "4"}, 0.9, 0.5),
    ({"model": "deltanet", "model.short_conv": "4", "size.d_head": "16"}, 0.7, 0.3),
    ({"model": "delta_dpfp", "model.short_conv": "0", "model.beta_max": "2"}, 0.8, 0.1),
]


@pytest.fixture
def folder(tmp_path):
    for changes, easy, hard in RUNS:
        texts = [f"{key}={value}" for key, value in changes.items()]
        config = compose_config(["task=mqar", "task.n_pairs=[4,16]", *texts]).config
        network = build("network", config["network"], vocab_size=512)
        run = tmp_path / "__".join(f"{key}-{value}" for key, value in changes.items())
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        summary = {
            "test/loss": 1.0,
            "test/acc": (easy + hard) / 2,
            "test/acc_pairs_16": hard,
            "test/acc_pairs_4": easy,
            "state_size": network.state_size,
            "parameters": 1000,
            "global_step": 10,
            "wall_seconds": 60.0,
        }
        (run / "summary.json").write_text(json.dumps(summary))
    unfinished = tmp_path / "model-linear"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("{}")
    return tmp_path


def test_report_writes_table_and_figure(folder, capsys):
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed == (folder / "mqar.md").read_text()
    assert "| all | 4 pairs | 16 pairs |" in printed
    assert "| `delta_dpfp, beta_max=2` | 0 | 32 | 8,192 | 1.0 | 45.0 | 80.0 | 10.0 |" in printed
    with (folder / "mqar.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(RUNS)
    assert {row["acc_pairs_16"] for row in rows} == {str(hard) for *_, hard in RUNS}
    assert (folder / "mqar.png").read_bytes()[:4] == b"\x89PNG"


def test_report_counts_what_is_carried(folder):
    sizes = {(r["model"], r["short_conv"], r["d_head"]): r["state_size"] for r in read(folder)}
    assert sizes == {
        ("softmax", 0, 32): 2 * 64 * 2 * 64,  # layers, tokens, k and v, heads x d_head
        ("softmax", 4, 32): 2 * (64 * 2 * 64 + 3 * 3 * 64),
        ("deltanet", 4, 32): 2 * (2 * 32 * 32 + 3 * 3 * 64),
        ("deltanet", 4, 16): 2 * (2 * 16 * 16 + 3 * 3 * 32),
        ("delta_dpfp", 0, 32): 2 * (2 * 64 * 32),
    }


def test_report_without_runs_is_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="no finished run"):
        report(tmp_path)
    assert main([str(tmp_path)]) == main([]) == main([str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
