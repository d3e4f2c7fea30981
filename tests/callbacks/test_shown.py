"""What TensorBoard shows of a run of the demo's shape."""

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from fwlight.run.tensorboard import MOST_SCALARS
from tests.run.standin import rows
from train import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's layers and heads, on little text for a few steps; its folder and its events."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "text.txt").write_text("the cat sat on the mat and the dog ran off .\n" * 300)
    small = ["size.d_model=32", "size.d_head=4", "size.d_ff=32", "task.seq_len=64"]
    short = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    arguments = ["experiment=demo", *small, *short, "diagnostics.every_n_steps=2"]
    arguments += ["task.data=text", f"task.path={folder / 'text.txt'}", f"run_dir={folder / 'run'}"]
    assert main(arguments) == 0
    events = EventAccumulator(str(folder / "run"), size_guidance={"tensors": 0}).Reload()
    return folder / "run", events


def test_demo_shows_few_scalars_under_the_names_of_metrics_csv(demo):
    folder, events = demo
    shown, written = {*events.Tags()["scalars"]}, {name for _, name in rows(folder)}
    copies = {tag for tag in shown if tag.startswith("_overview/")}
    assert len(shown) <= MOST_SCALARS
    assert shown - copies < written
    assert {tag.removeprefix("_overview/") for tag in copies} <= shown - copies
    assert len(written) > 2 * MOST_SCALARS
    # Nothing of train, val and test is missing, and every layer is there.
    main_ones = {x for x in written if x.startswith(("train/", "val/", "test/"))}
    assert {x for x in main_ones if "/recall/" not in x} <= shown
    layers = {tag.split("/")[1] for tag in shown if tag.startswith("memory_capacity/")}
    assert layers == {"layer0", "layer1", "layer2", "layer3"}


def test_demo_s_page_and_dashboard_begin_with_the_loss(demo):
    _, events = demo
    # TensorBoard's order: of what is no letter before letters
    first = min(events.Tags()["scalars"], key=lambda tag: re.sub("[^a-z]", " ", tag))
    assert first == "_overview/test/loss"
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category][:2] == ["results", "layer0"]
    assert [chart.title for chart in layout.category[0].chart] == ["loss", "ppl", "bpb"]
    tags = events.Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, tag) for tag in tags), pattern
