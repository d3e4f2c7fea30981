"""Checkpoints of earlier versions test, resume and log as they did there; see families.py."""

import json
from pathlib import Path

import pytest

from tests.compatibility.families import FAMILIES, MIDDLE, arguments, tags, write_texts
from train import main

RECORDS = sorted(path.parent for path in Path(__file__).parent.glob("*/recorded.json"))
TIMES = ("tokens_per_second", "wall_seconds")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_old_checkpoint(family, record, texts, tmp_path) -> None:
    recorded = json.loads((record / "recorded.json").read_text())[family]
    ckpt = record / f"{family}.ckpt"
    chosen = arguments(family, texts)
    moved = [text for text in chosen if str(texts) in text]
    tested = tmp_path / "tested.json"
    assert main(["action=test", f"ckpt={ckpt}", *moved, f"output={tested}"]) == 0
    assert_same(json.loads(tested.read_text()), recorded["test"])
    run_dir = tmp_path / "run"
    assert main([*chosen, f"resume={ckpt}", f"run_dir={run_dir}"]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    # Draws of random features that are redrawn have moved in the stream of random numbers since, so
    # that other numbers drop.
    redrawn = "model/feature_map=favor_lm" in FAMILIES[family]
    assert_same(summary, recorded["summary"], rel=1e-2 if redrawn else 1e-4)
    assert set(recorded["tags"]) <= set(tags(run_dir))
    assert summary["global_step"] > MIDDLE


def assert_same(found: dict, recorded: dict, rel: float = 1e-4) -> None:
    """Hold numbers to rounding: processors differ in the order in which they add."""
    for name, value in recorded.items():
        if name not in TIMES:
            same = pytest.approx(value, rel=rel) if isinstance(value, float) else value
            assert found[name] == same, name
