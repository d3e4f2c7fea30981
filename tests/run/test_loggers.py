"""metrics.csv and TensorBoard."""

import io
import math
import os

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fwlight.run import RunFolder, build_loggers
from fwlight.run.loggers import CsvLogger, TensorBoard, purge_csv


def accumulator(path):
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def scalars(path, tag):
    return [(event.step, event.value) for event in accumulator(path).Scalars(tag)]


def start(path, **settings):
    with RunFolder.open(path, resume="auto", is_rank_zero=True) as folder:
        return folder, build_loggers(folder, hyperparameters={"optimizer": {"lr": 0.1}}, **settings)


def test_csv_values_read_back_exactly(tmp_path):
    logger = CsvLogger(tmp_path / "metrics.csv")
    values = {"a": 1 / 3, "b": 1e-300, "c": math.inf, "d": 2}
    logger.log_metrics(values, 7)
    logger.log_metrics({"a": 0.1}, 8)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,metric,value"
    assert {n: float(v) for s, n, v in (x.split(",") for x in lines[1:5]) if s == "7"} == values
    assert lines[5] == "8,a,0.1"


def test_purge_drops_later_rows_test_results_and_half_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = ["1,train/loss,3.0\n", "5,val/loss,2.0\n", "5,test/loss,2.0\n", "6,train/loss,1.5\n"]
    path.write_text("step,metric,value\n" + "".join(rows) + "5,train/lo")
    purge_csv(path, 5)
    assert path.read_text() == "step,metric,value\n" + rows[0] + rows[1]
    purge_csv(path, 0)
    assert path.read_text() == "step,metric,value\n"
    purge_csv(tmp_path / "none.csv", 5)


ROWS = b"1,train/loss,3.0\n5,val/loss,2.0\n"


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("content", "damaged"),
    [
        (b"step,metric,value\n" + ROWS + b"5,train/l\xffss,1.0\n", 1),
        (b"step,metric,value\n5,train/loss,1.\xff\n" + ROWS + b"\xff\xff", 1),
        (b"\0" * 40 + b"\n" + ROWS + b"4,train/loss\n\n,,\n", 4),
        (b"tric,value\n" + ROWS + b"3,train/loss,2.5.3\n", 2),
        (b"1,train/loss,4.0\n" + ROWS, 0),  # no header, and a row twice: the last one counts
        (ROWS + b"5,train/lo", 0),  # as a killed process leaves it
    ],
)
def test_damaged_rows_are_dropped_with_one_warning(tmp_path, capsys, content, damaged):
    (tmp_path / "metrics.csv").write_bytes(content)
    purge_csv(tmp_path / "metrics.csv", 5)
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,metric,value\n" + ROWS
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (damaged > 0)
    assert not damaged or f"metrics.csv: {damaged} damaged rows" in lines[0]


def occupy(path, kind):
    """Put something that is no log where a log is to be."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/full")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("name", "kind"), [("metrics.csv", kind) for kind in ("pipe", "device", "folder")]
)
def test_resumed_run_logs_elsewhere_with_one_warning(tmp_path, capsys, name, kind):
    (tmp_path / "config.yaml").touch()
    occupy(tmp_path / name, kind)
    folder, loggers = start(tmp_path)
    assert folder.resume_step == 0
    for step in range(1, 3):
        for logger in loggers:
            logger.log_metrics({"train/loss": 1.0, "test/loss": 2.0}, step)
            logger.save()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / name} cannot be written")
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.fault(40)
def test_what_lies_beside_the_events_is_left_alone(tmp_path, capsys):
    names = ["bak", "1", f"{10**100}.host", "x.test", "5.test/", "1000.folder.test/", "backup/"]
    strangers = [tmp_path / f"events.out.tfevents.{name}" for name in names]
    for name, path in zip(names, strangers, strict=True):
        path.mkdir() if name.endswith("/") else path.touch()
    (tmp_path / "config.yaml").touch()
    (tmp_path / ".notes.partial").mkdir()
    _, (_, logger) = start(tmp_path)
    logger.log_metrics({"train/loss": 1.0, "test/loss": 2.0}, 3)
    logger.save()
    assert all(path.exists() for path in [*strangers, tmp_path / ".notes.partial"])
    assert len(list(tmp_path.glob("events.*"))) == len(strangers) + 2
    assert capsys.readouterr().err == ""


@pytest.mark.fault(40)
def test_logging_that_raises_anything_at_all_is_one_warning(tmp_path, capsys):
    logger = TensorBoard(tmp_path, hyperparameters={})
    logger.show_figure("tag", "no figure", 1)
    logger.show_figure("tag", "no figure", 2)
    logger.log_metrics({"a": 1.0}, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: TensorBoard's part of {tmp_path} cannot be written (AttributeError" in line


def test_resumed_curves_are_continuous(tmp_path):
    folder, loggers = start(tmp_path)
    for step in range(1, 9):
        for logger in loggers:
            logger.log_metrics({"train/loss": float(step)}, step)
            logger.save()
    folder.resume_step = 5
    loggers = build_loggers(folder, hyperparameters={})
    for step in range(6, 11):
        for logger in loggers:
            logger.log_metrics({"train/loss": float(-step)}, step)
            logger.save()
    expected = [(s, float(s if s <= 5 else -s)) for s in range(1, 11)]
    assert scalars(folder.tensorboard, "train/loss") == expected
    lines = folder.metrics_csv.read_text().splitlines()[1:]
    assert [(int(x.split(",")[0]), float(x.split(",")[2])) for x in lines] == expected


def test_only_csv_is_written_without_tensorboard(tmp_path):
    _, loggers = start(tmp_path, others={})
    assert [type(logger) for logger in loggers] == [CsvLogger]
    assert not list(tmp_path.glob("events.*"))


def test_run_of_an_earlier_version_goes_on_in_its_own_place(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "config.yaml").touch()
    _, (_, logger) = start(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 3)
    logger.save()
    assert scalars(tmp_path / "tensorboard", "train/loss") == [(3, 1.0)]
    assert not list(tmp_path.glob("events.*"))


def test_hparams_tab_has_the_configuration_and_real_metrics(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    logger = TensorBoard(
        tmp_path,
        hyperparameters={
            "optimizer": {"lr": 0.1, "betas": [0.9, 0.999]},
            "run_dir": None,
            "seed": 1,
            "odd": math.nan,
        },
    )
    logger.log_metrics({"val/ppl": 12.5}, 10)
    logger.log_metrics({"test/ppl": 11.5}, 10)
    logger.finalize("success")
    logger.finalize("success")
    plugin = accumulator(tmp_path).summary_metadata
    data = {
        tag: HParamsPluginData.FromString(metadata.plugin_data.content)
        for tag, metadata in plugin.items()
        if metadata.plugin_data.plugin_name == "hparams"
    }
    started = data["_hparams_/session_start_info"].session_start_info.hparams
    assert started["optimizer.lr"].number_value == 0.1
    assert started["optimizer.betas"].string_value == "[0.9, 0.999]"
    assert started["seed"].number_value == 1
    assert "_hparams_/experiment" not in data  # one run would speak for all
    assert "_hparams_/session_end_info" in data
    for prefix in ("", "_overview/"):
        assert scalars(tmp_path, f"{prefix}val/ppl") == [(10, 12.5)]
        assert scalars(tmp_path, f"{prefix}test/ppl") == [(10, 11.5)]


def test_text_is_shown_verbatim(tmp_path):
    logger = TensorBoard(tmp_path, hyperparameters={})
    logger.show_text("samples/0", "one\n# two *three*", 4)
    logger.save()
    (event,) = accumulator(tmp_path).Tensors("samples/0/text_summary")
    assert event.step == 4
    assert event.tensor_proto.string_val[0].decode() == "    one\n    # two *three*"


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_logger_that_cannot_write_warns_once_and_goes_on(tmp_path, capsys, kind):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x"
    logger = CsvLogger(path) if kind == "csv" else TensorBoard(path, hyperparameters={})
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
        logger.save()
    logger.finalize("success")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning:")
    assert str(path) in line


def test_csv_on_a_full_disk_warns_once_and_goes_on(tmp_path, capsys):
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    logger = CsvLogger(tmp_path / "metrics.csv")
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_tensorboard_has_room_for_the_results_however_much_there_is(tmp_path):
    logger = TensorBoard(tmp_path, hyperparameters={}, monitor="val/reward")
    logger.log_metrics({f"gradient_norm/blocks.{i}": 1.0 for i in range(200)}, 1)
    results = {f"{split}/{x}": 1.0 for split in ("val", "test") for x in ("loss", "reward")}
    logger.log_metrics(results, 1)
    logger.log_metrics({f"test/loss_position_{i}": 1.0 for i in range(200)}, 1)
    logger.save()
    tags = accumulator(tmp_path).Tags()["scalars"]
    assert len(tags) == 60
    assert {*results, *(f"_overview/{x}" for x in results)} <= {*tags}
    whole = TensorBoard(tmp_path / "all", hyperparameters={}, all_scalars=True)
    whole.log_metrics({f"gradient_norm/blocks.{i}": 1.0 for i in range(200)}, 1)
    whole.save()
    assert len(accumulator(tmp_path / "all").Tags()["scalars"]) == 200


def test_every_column_of_a_figure_is_an_image(tmp_path):
    figure = Figure(figsize=(4, 1))
    for shade, axes in enumerate(figure.subplots(1, 4)):
        axes.set_position([shade / 4, 0, 0.25, 1])
        axes.set_facecolor(str(shade / 4))
        axes.set_axis_on()
    logger = TensorBoard(tmp_path, hyperparameters={})
    logger.show_figure("beta", figure, 4)
    logger.save()
    events = accumulator(tmp_path)
    assert sorted(events.Tags()["images"]) == ["beta", "beta/2", "beta/3", "beta/4"]
    for shade, tag in enumerate(sorted(events.Tags()["images"])):
        (image,) = events.Images(tag)
        assert (image.step, image.width, image.height) == (4, 160, 160)
        pixels = imread(io.BytesIO(image.encoded_image_string))
        assert pixels[80, 40, 0] == pytest.approx(shade / 4, abs=0.01)
