"""The table of abilities, from folders as runs leave them."""

import csv
import json

import pytest
import yaml

from cli.composition import compose_config
from reports.abilities import main, read, scores

RUNS = [  # what the command line says, and what was measured
    (["task=state_tracking", "model=linear"], {"scaled_acc_length_40": 0.02}),
    (
        ["task=state_tracking", "model=deltanet", "model.beta_max=2"],
        {"scaled_acc_length_40": 1.0, "scaled_acc_beyond": 0.9},
    ),
    (
        ["task=state_tracking", "model=deltanet", "model.beta_max=2", "seed=2"],
        {"scaled_acc_length_40": 1.0, "scaled_acc_beyond": 0.7},
    ),
    (["task=mqar", "model=linear", "task.n_pairs=[4,16]"], {"acc_pairs_4": 0.5, "acc_pairs_16": 0}),
    (["task=mad", "model=linear"], {"acc": 0.4}),
    (["task=mad", "model=linear", "optimizer.lr=1e-4"], {"acc": 0.6}),
    (["task=retrieval", "model=linear"], {"loss": 0.1}),
]


def leave(folder, texts, tests):
    """Leave what a finished run leaves."""
    composition = compose_config(texts)
    run = folder / "__".join(text.replace("=", "-") for text in texts)
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(composition.config))
    measured = {f"test/{name}": value for name, value in tests.items()}
    counts = {"state_size": 640, "parameters": 9, "global_step": 10, "wall_seconds": 60.0}
    settings = {"task": composition.choices["task"], "model": composition.choices["model"]}
    (run / "summary.json").write_text(json.dumps({**measured, **counts, "settings": settings}))


@pytest.fixture
def folder(tmp_path):
    for texts, tests in RUNS:
        leave(tmp_path, texts, tests)
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_a_row_is_a_model_and_a_column_an_ability(folder, capsys):
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    table = {
        cells[0]: dict(zip(heads, cells, strict=True))
        for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    }
    assert table["`deltanet, beta_max=2`"]["parity, 41 to 256"] == "0.800 (0.70 to 0.90)"
    assert table["`linear`"]["parity, to 40"] == "0.020"
    assert table["`linear`"]["parity, 41 to 256"] == ""
    assert table["`linear`"]["MQAR, 16 pairs"] == "0.000"
    assert table["`linear`"]["numbers carried"] == "640"
    assert (folder / "abilities.png").read_bytes()[:4] == b"\x89PNG"
    with (folder / "abilities.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_of_runs_of_one_seed_the_best_counts(folder):
    assert scores(read(folder), "linear", "recall") == [0.6]


def test_mean_of_mad_needs_all_problems(tmp_path, capsys):
    for number, problem in enumerate(
        ("recall", "fuzzy", "noisy", "selective_copy", "compression", "memorisation")
    ):
        leave(tmp_path, ["task=mad", f"task.problem={problem}"], {"acc": number / 10})
    main([str(tmp_path)])
    heads, _, line = capsys.readouterr().out.splitlines()
    assert heads.endswith("| mean of MAD |")
    assert line.endswith("| 0.250 |")


def test_programs_are_abilities_by_length_and_a_convolution_is_another_row(tmp_path):
    task = ["task=code_execution", "task.test_statements=[10,20]", "model=delta_rnn"]
    found = {"acc_sequence_statements_10": 0.7, "acc_sequence_statements_20": 0.4}
    leave(tmp_path, [*task, "model.short_conv=4"], found)
    leave(tmp_path, ["task=code_execution", "model=lstm"], {"acc_sequence": 0.1})
    leave(tmp_path, ["task=listops", "task.depth=5", "model=lstm"], {"acc": 0.3})
    rows = {(row["model"], row["ability"]): row["score"] for row in read(tmp_path)}
    assert rows == {
        ("delta_rnn, short_conv=4", "programs of 10"): 0.7,
        ("delta_rnn, short_conv=4", "programs of 20"): 0.4,
        ("lstm", "programs of 100"): 0.1,
        ("lstm", "ListOps, depth 5"): 0.3,
    }


def test_no_run_is_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} holds no finished run of a task with answers\n"
    )
