"""The report of a translation sweep, from summaries as runs leave them."""

import csv
import json

from cli.building import build
from cli.composition import compose_config
from reports.translation import main

RUNS = {  # BLEU
    "softmax__seed-1": 30.0,
    "softmax__seed-2": 31.0,
    "delta_dpfp__seed-1": 29.0,
    "delta_dpfp__seed-2": 30.4,
    "linear": 27.3,
}


def write_runs(folder, names):
    for name in names:
        (folder / name).mkdir()
        scores = {f"test/{key}": 50.0 for key in ("bleu_lowercase", "chrf", "exact_match", "ppl")}
        summary = {**scores, "parameters": 1, "global_step": 1200, "wall_seconds": 600.0}
        summary["test/bleu"] = RUNS.get(name)
        (folder / name / "summary.json").write_text(json.dumps(summary))
        (folder / name / "config.yaml").write_text("seed: 1\n")


def test_report_compares_means_over_seeds_with_softmax(tmp_path, capsys):
    write_runs(tmp_path, [*RUNS, "not_tested"])
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "translation.md").read_text()
    lines = printed.splitlines()
    assert "- softmax (seeds: 1.0 apart)" in lines[0]
    assert lines[2].startswith("| `softmax` | 30.5 | 30.0, 31.0 |  | 50.0 |")
    assert lines[3].startswith("| `delta_dpfp` | 29.7 | 29.0, 30.4 | -0.8 | 50.0 |")
    assert lines[4] == "| `linear` | 27.3 | 27.3 | -3.2 | 50.0 | 50.0 | 50.00 | 1,200 | 10 |"
    with (tmp_path / "translation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"]: float(row["bleu"]) for row in rows} == RUNS


def test_report_without_softmax_has_no_differences_and_without_runs_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no finished run of task=translation" in capsys.readouterr().err
    write_runs(tmp_path, ["linear"])
    assert main([str(tmp_path)]) == 0
    assert "| `linear` | 27.3 | 27.3 |  | 50.0 |" in capsys.readouterr().out


def test_the_sweep_ends_in_the_report(tmp_path):
    write_runs(tmp_path, RUNS)
    config = compose_config(["experiment=translation_multi30k_comparison"]).config
    build("report", config["report"], tmp_path)
    assert (tmp_path / "translation.md").is_file()
