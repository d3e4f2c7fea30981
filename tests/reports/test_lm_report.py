import json

import pytest
import yaml

from reports.lm import main, markdown, read


def _run(folder, row, seed, ppl):
    run = folder / f"{row}__seed-{seed}"
    run.mkdir(parents=True)
    summary = {
        **{"val/best_ppl": ppl - 1, "test/ppl": ppl, "test/tokens": 100.0, "parameters": 5},
        **{"state_size": 8 if row != "softmax" else None, "global_step": 7, "wall_seconds": 90},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": seed}))


@pytest.fixture
def folder(tmp_path):
    for seed, (linear, delta) in enumerate([(100, 80), (110, 100)], start=1):
        _run(tmp_path, "linear", seed, linear)
        _run(tmp_path, "delta_linear", seed, delta)
    _run(tmp_path, "softmax", 1, 90)
    return tmp_path


def test_lm_report_pairs_the_seeds(folder):
    text = markdown(read(folder))
    assert "| `linear` | 2 | 104.0 ± 7.1 | 105.0 ± 7.1 | 8 | 1.5 |" in text
    assert "| `softmax` | 1 | 89.0 | 90.0 | grows | 1.5 |" in text
    assert "| delta - sum, linear | -17.5 | 10.6 | -25.0, -10.0 |" in text
    assert "| softmax - linear | -11.1 | - | -11.1 |" in text
    assert "Table 4" not in text
    assert "Table 3" not in text  # a single row of it


def test_lm_report_writes_csv_tables_and_figure(folder, capsys):
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == (folder / "lm_mini.md").read_text()
    lines = (folder / "lm_mini.csv").read_text().splitlines()
    assert lines[1] == "delta_linear,1,79,80,100,5,8,7,1.5"
    assert (folder / "lm_mini.png").read_bytes().startswith(b"\x89PNG")


def test_lm_report_of_nothing_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no finished runs of two rows" in capsys.readouterr().err
    assert main([]) == 2
