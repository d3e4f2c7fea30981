"""`action=robustness` from a command line to its page and table."""

import math
from types import SimpleNamespace

import pytest
import torch

from cli.main import main
from fwlight.diagnostics.lpq import log_gap, log_rademacher
from fwlight.errors import ConfigError
from fwlight.models import MLP
from fwlight.robustness.corruptions import CORRUPTIONS
from fwlight.robustness.measures import from_csv
from fwlight.run.actions import Restored
from fwlight.run.actions.robustness import robustness
from fwlight.training.classification import ClassificationModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import ImageBatch

pytest.importorskip("sklearn")
FEW = ["robustness.images=30", "robustness.attacked=8", "robustness.eps=[0.05]"]
FEW += ["robustness.holes=[0.25]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small MLP after a few updates on digits."""
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    small = ["task=image", "network=mlp", "size.d_ff=16", "trainer.max_steps=20", "logger=none"]
    assert main([*small, "callbacks=none", f"run_dir={folder}", "optimizer.warmup_steps=2"]) == 0
    return folder


def act(run, *more: str) -> int:
    ckpt = f"ckpt={run}/checkpoints/last.ckpt"
    return main(["action=robustness", ckpt, *FEW, *more])


def test_page_and_table_are_in_the_run(run, tmp_path, capsys):
    assert act(run) == 0
    said = capsys.readouterr().out
    for word in ("clean: error", "corruptions: mean", "waves:", "smallest changes:", "pgd, sign"):
        assert word in said
    assert "test error <= training error at margin 1 + 10^" in said
    page = (run / "robustness.html").read_text()
    assert page.count('src="data:image/svg+xml') == 4
    assert "scaled to 8 x 8" in page
    rows = from_csv((run / "robustness.csv").read_text())
    errors = [row for row in rows if row.measure == "corruption"]
    assert len(errors) == 5 * len(CORRUPTIONS)
    assert all(0 <= row.value <= 1 for row in errors)
    assert len([row for row in rows if row.measure == "wave"]) == 64
    norms = {row.kind: row.value for row in rows if row.measure == "norm_lpq"}
    assert list(norms) == ["layers.0", "layers.3", "output"]
    (bound,) = [row.value for row in rows if row.kind == "log10_gap"]
    log_r = log_rademacher(list(norms.values()), n=1260, inputs=64)
    assert bound == pytest.approx(log_gap(log_r, n=1260, classes=10) / math.log(10), abs=1e-4)
    assert bound > 0
    # Against itself every relative error is 1; the page can be put elsewhere.
    assert act(run, f"robustness.against={run}", f"output={tmp_path}/x.html") == 0
    assert "mCE against" in (tmp_path / "x.html").read_text()
    again = from_csv((tmp_path / "x.csv").read_text())
    assert [row for row in again if row.measure != "relative"] == rows
    relative = {row.kind: row.value for row in again if row.measure == "relative"}
    assert set(relative) == {*CORRUPTIONS, "mce"}
    assert all(value == pytest.approx(1) for value in relative.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["robustness.against=nowhere"], "nowhere/robustness.csv: No such file"),
        (["robustness.against={other}"], "measured on other images or with another seed"),
        (["robustness.against={broken}"], "its columns are not measure, kind, level, value"),
        (["output=page.csv"], "end the page's name with .html"),
        (["robustness.holes=[1.0]"], "must be below 1"),
        (["robustness.image=3"], "did you mean robustness.images"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, more, message, capsys):
    for name, text in (
        ("other", "measure,kind,level,value\nimages,0,30,0\n"),
        ("broken", "a,b\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "robustness.csv").write_text(text)
    places = {"other": tmp_path / "other", "broken": tmp_path / "broken"}
    assert act(run, *(text.format(**places) for text in more)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def restored(side: int) -> Restored:
    torch.manual_seed(0)
    network = MLP(n_classes=3, shape=(1, side, side), n_layers=1, d_ff=8, dropout=0.0)
    config = OptimizerConfig(schedule="constant")
    module = ClassificationModule(network, optimizer=config, max_steps=1)
    pixels = torch.randint(0, 256, (5, 1, side, side), dtype=torch.uint8)
    batch = ImageBatch(pixels, torch.arange(5) % 3)
    data = SimpleNamespace(setup=lambda stage: None, test_dataloader=lambda: [batch])
    return Restored(module, data, {}, "x.ckpt", "", lambda: None)  # type: ignore[arg-type]


KEYS = {"images": 5, "attacked": 5, "holes": [0.25], "eps": [0.1], "seed": 1}
KEYS |= {"against": None, "output": None}


def test_images_that_are_too_small_and_other_tasks_are_refused():
    with pytest.raises(ConfigError, match="images of 3 x 3 pixels are too small"):
        robustness(restored(3), **KEYS)
    other = restored(8)._replace(module=torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="task of this checkpoint is another one"):
        robustness(other, **KEYS)
