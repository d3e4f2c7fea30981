"""Two models on one page, and how much one loses more than the other."""

import math
import re

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.diagnostics.comparison import Side, comparison_page
from fwlight.diagnostics.findings import find_out
from fwlight.diagnostics.interventions import intervene
from fwlight.diagnostics.losses import SequenceLosses, difference, sequence_losses
from fwlight.diagnostics.worth import advise
from fwlight.training.lm import LanguageModelingModule
from fwlight.training.optim import OptimizerConfig
from fwlight.types import IGNORE_INDEX, LMBatch


def side(model, batches, *, effects=True):
    torch.manual_seed(0)
    config = compose_config(["size=tiny", f"model={model}"]).config
    network = build("network", config["network"], vocab_size=30)
    module = LanguageModelingModule(network, optimizer=OptimizerConfig(), max_steps=1)
    found = intervene(module, batches, heads=False) if effects else []
    return Side(
        f"runs/<{model}>", 7, sum(x.numel() for x in network.parameters()),
        sequence_losses(module, batches), find_out(module, batches, draws=0), found,
        advise(network, found), f"model: {model}",
    )  # fmt: skip


@pytest.fixture
def batches():
    ids = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3:] = IGNORE_INDEX
    parts = zip(ids[:, :-1].split(2), targets.split(2), strict=True)
    return [LMBatch(*part) for part in parts]


def test_losses_of_two_models_differ_by_what_they_differ_in_every_sequence(batches):
    a, b = (side(x, batches, effects=False).losses for x in ("gated_deltanet", "linear"))
    assert a.targets.tolist() == [3, 8, 8, 8]
    mean, error = difference(a, b)
    assert mean == pytest.approx(b.mean - a.mean, rel=1e-9)
    ratio = (b.nll - a.nll) / a.targets
    assert difference(a, a) == (0.0, 0.0)
    equal, ids = torch.full((4,), 8.0).double(), torch.arange(32)
    of = difference(SequenceLosses(0 * ratio, equal, ids), SequenceLosses(8 * ratio, equal, ids))
    assert of == pytest.approx((float(ratio.mean()), float(ratio.std()) / 2))
    assert error > 0
    assert difference(a, SequenceLosses(b.nll[:3], b.targets[:3], b.asked[:19])) is None
    # As many targets of other words.
    assert difference(a, b._replace(asked=b.asked.flip(0))) is None
    nothing = torch.zeros(0)
    assert math.isnan(SequenceLosses(nothing, nothing, nothing.long()).mean)


def test_both_stand_side_by_side(batches):
    sides = [side("gated_deltanet", batches), side("linear", batches)]
    page = comparison_page(sides, of="four sequences")
    assert "Comparison of runs/&lt;gated_deltanet&gt; and runs/&lt;linear&gt;" in page
    (rows,) = re.findall("<table>(.*?)</table>", page.partition("<h2>")[0])
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows.split("<tr>")[2:]]
    table = {name: both for name, *both in cells}
    assert table["layers"] == ["delta rule with a decay", "sum rule"]
    assert table["parameters"] == [f"{x.parameters:,}" for x in sides]
    assert table["loss from an empty memory, nats per target"] == [
        f"{x.losses.mean:.3f}" for x in sides
    ]
    mean, error = difference(sides[0].losses, sides[1].losses)
    than = "less" if mean < 0 else "more"
    told = f"B loses {abs(mean):.3f} ± {error:.3f} nats per target {than} than A on the same 4"
    assert told in page
    turned = comparison_page(sides[::-1], of="four sequences")
    assert f"± {error:.3f} nats per target {'more' if mean < 0 else 'less'} than A" in turned
    other = sides[1]._replace(losses=sides[1].losses._replace(asked=sides[1].losses.asked.flip(0)))
    assert "Their sequences differ" in comparison_page([sides[0], other], of="")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "What should be changed?", "What every memory is worth", "What the memories hold",
        "Capacity", "Recall", "Fast weight norms", "Write strengths", "Configuration",
    ]  # fmt: skip
    # Every axis of A beside that of B; the sum rule has no write strengths.
    assert page.count("<figcaption>A") == page.count("<figcaption>B") == 16
    assert page.count("nothing to show") == 4
    assert page.count("data:image/svg") == 28
    assert not re.search(r"<(gated|linear)", page)


def test_a_model_without_fast_weights_has_empty_cells(batches):
    sides = [side("softmax", batches), side("deltanet", batches, effects=False)]
    page = comparison_page(sides, of="four sequences")
    assert "What should be changed?" not in page
    assert "softmax attention" in page
    assert page.count("nothing to show") == 16
    both = [side("softmax", batches, effects=False)] * 2
    assert re.findall("<h2>(.*?)</h2>", comparison_page(both, of="")) == ["Configuration"]
