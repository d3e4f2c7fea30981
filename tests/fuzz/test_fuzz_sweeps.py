"""What a sweep finds in its points' folders: finished is a run with the asked settings alone."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import strategies as st

from cli.finished import drop_other_summary, settings
from cli.sweep import expand
from tests.fuzz.fuzzing import changes, fuzz

SWEEPS = [
    ["seed=1,2", "size=tiny"],
    ["model=delta_dpfp,softmax", "trainer.max_steps=9", "optimizer.warmup_steps=0"],
    ["task=mqar", "optimizer.lr=1e-3,0.1", "callbacks.checkpoint.save_best=false"],
    [
        "task=translation",
        "model/feature_map=elu,relu",
        "task.max_length=9",
        "trainer.max_time=null",
    ],
]


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Points of several sweeps, without folders."""
    folder = tmp_path_factory.mktemp("sweeps")
    return [point for words in SWEEPS for point in expand([*words, f"run_dir={folder}"])]


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def changed(values, key, kind, value):
    """A mapping of which one value is changed, removed, renamed, or that of another key."""
    values = dict(values)
    names = sorted(values)
    name, other = names[key % len(names)], names[(key // 7) % len(names)]
    if kind == "remove":
        del values[name]
    elif kind == "rename":
        values[name + "x"] = values.pop(name)
    else:
        values[name] = values[other] if kind == "exchange" else value
    return values


CHANGES = st.tuples(
    st.integers(0, 10_000), st.sampled_from(["remove", "rename", "exchange", "replace"]), PLAIN
)


def same(one, other) -> bool:
    """Equality of values, for which true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_asked(recorded, point, *, earlier=False) -> bool:
    """Whether all that is recorded is asked for, and all that was asked for is recorded.

    An earlier version recorded the values that options have, and not which options.
    """
    asked = settings(values_of(point.composition.config) if earlier else point.composition)
    return all(key in asked and same(asked[key], x) for key, x in recorded.items()) and all(
        key in recorded for key in point.composition.asked & asked.keys()
    )


def values_of(config):
    """A composition that knows no choices."""
    return SimpleNamespace(choices={}, config=config)


def test_point_is_finished_by_its_own_settings_alone(request, points):
    def read(case):
        point, recorded, change = case
        values = settings(points[recorded].composition)
        values = values if change is None else changed(values, *change)
        text = json.dumps({"global_step": 3, "settings": values})
        leave(points[point], {"summary.json": text.encode()})
        assert points[point].finished() == is_asked(json.loads(text)["settings"], points[point])

    number = st.integers(0, len(points) - 1)
    cases = st.tuples(number, number, st.none() | CHANGES)
    own = st.tuples(number, st.none() | CHANGES).map(lambda case: (case[0], *case))
    fuzz(read, cases | own, request, short=100, full=2_000)


def leave(point, files):
    """Put files into a point's folder, and nothing else."""
    shutil.rmtree(point.folder, ignore_errors=True)
    point.folder.mkdir(parents=True)
    for name, content in files.items():
        (point.folder / name).write_bytes(content)


def files_of(point, *, earlier):
    """What a finished run leaves, of this version or an earlier one."""
    config = point.composition.config
    summary = {"test/loss": 1.5, "global_step": config["trainer"]["max_steps"]}
    if not earlier:
        summary["settings"] = settings(point.composition)
    return {
        "summary.json": json.dumps(summary, indent=2).encode(),
        "config.yaml": yaml.safe_dump(config, sort_keys=False).encode(),
    }


@pytest.mark.parametrize("earlier", [False, True])
def test_damaged_bookkeeping_leaves_the_point_open(request, points, earlier):
    whole = [files_of(point, earlier=earlier) for point in points[::2]]
    for point, files in zip(points[::2], whole, strict=True):
        leave(point, files)
        assert point.finished()

    def read(case):
        number, name, content = case
        point, files = points[2 * number], whole[number]
        leave(point, {**files, name: content})
        if finished := point.finished():
            summary = json.loads((point.folder / "summary.json").read_bytes())
            recorded = summary.get("settings")
            if recorded is None:
                config = yaml.safe_load((point.folder / "config.yaml").read_bytes())
                recorded = settings(values_of(config))
                assert config["trainer"]["max_steps"] <= summary["global_step"] < math.inf
            assert is_asked(recorded, point, earlier="settings" not in summary)
        drop_other_summary(point.folder, point.composition)
        assert (point.folder / "summary.json").exists() == finished

    def contents(number, name):
        content = whole[number][name]
        values = PLAIN | st.dictionaries(st.sampled_from(["settings", "global_step"]), PLAIN)
        changed_values = CHANGES.map(lambda change: with_change(name, content, change))
        damage = changes(st.just(content)) | st.integers(0, len(content)).map(lambda n: content[:n])
        return damage | st.binary(max_size=40) | values.map(dumped) | changed_values

    cases = [
        st.tuples(st.just(number), st.just(name), contents(number, name))
        for number, files in enumerate(whole)
        for name in files
    ]
    fuzz(read, st.one_of(cases), request, short=40, full=1_500)


def dumped(value) -> bytes:
    """JSON, which is YAML, too."""
    return json.dumps(value).encode()


def with_change(name, content, change) -> bytes:
    """A file of which one value is changed."""
    value = yaml.safe_load(content)
    if name == "config.yaml" and change[0] % 2:
        return dumped({**value, "trainer": changed(value["trainer"], *change)})
    return dumped(changed(value, *change))
