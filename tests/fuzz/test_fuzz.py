"""Random input to everything that reads: an error of one line, or a result; never anything else.

A part of it is in make test; pytest tests/fuzz --full runs all of it.
"""

import io
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.composition import compose_config
from cli.folders import groups
from cli.stored import leaves
from fwlight.errors import CheckpointError, ConfigError
from fwlight.run.checkpoint_io import load_checkpoint
from tasks.io.archives import unpack
from tests.faults.processes import ROOT
from tests.fuzz.fuzzing import changes, fuzz, spoilt


def archive(form, names, contents):
    buffer = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in zip(names, contents, strict=False):
                made.writestr(name.replace("\0", "") or "x", content)
    else:
        with tarfile.open(fileobj=buffer, mode=form) as made:
            for name, content in zip(names, contents, strict=False):
                member = tarfile.TarInfo(name.replace("\0", "") or "x")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PATHS = st.one_of(
    st.text("ab./\\:", min_size=1, max_size=8),
    st.sampled_from(["../x", "/tmp/fwlight-fuzz", "a/../../x", "a", "a/b"]),
)
ARCHIVES = st.builds(
    archive,
    st.sampled_from(["zip", "w", "w:gz", "w:xz"]),
    st.lists(PATHS, max_size=3),
    st.lists(st.binary(max_size=50), max_size=3),
)


def test_archives_are_unpacked_inside_or_refused(request, tmp_path):
    number = 0

    def read(content):
        nonlocal number
        number += 1
        path, folder = tmp_path / "archive.gz", tmp_path / "inner" / str(number)
        path.write_bytes(content)
        folder.mkdir(parents=True)
        try:
            unpack(path, folder, max_bytes=10_000)
        finally:
            assert {entry.name for entry in tmp_path.iterdir()} == {"archive.gz", "inner"}
            assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 10_000
            shutil.rmtree(folder)

    fuzz(
        read, st.one_of(changes(ARCHIVES), st.binary(max_size=200)), request, short=200, full=15_000
    )


# Checkpoints


def checkpoint() -> dict:
    return {
        "state_dict": {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)},
        "global_step": 7,
        "callbacks": {"a": {"best": [1, 2.5, None, "x"]}},
        "fwlight": {"choices": {"model": "linear"}, "overrides": ["seed=2"], "config": {}},
    }


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    return buffer.getvalue()


def repacked(seed: int, n: int) -> bytes:
    """A whole archive, check sums and all, whose pickle is not what was written."""
    buffer = io.BytesIO()
    new = torch._C.PyTorchFileWriter(buffer)
    with zipfile.ZipFile(io.BytesIO(saved())) as old:
        for path in old.namelist():
            content, name = old.read(path), path.partition("/")[2]
            if name not in ("version", ".data/serialization_id"):  # which the writer adds itself
                content = spoilt(content, seed, n) if name.endswith(".pkl") else content
                new.write_record(name, content, len(content))
    new.write_end_of_file()
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["bytes", "changed", "repacked"])
def test_checkpoints_are_loaded_or_refused(request, tmp_path, form):
    path, whole = tmp_path / "x.ckpt", saved()
    contents = {
        "bytes": st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(b"PK\3\4".__add__)),
        "changed": changes(st.just(whole), most=4),
        "repacked": st.builds(repacked, st.integers(0, 2**32), st.integers(0, 4)),
    }[form]

    def read(content):
        path.write_bytes(content)
        loaded = load_checkpoint(path)
        assert isinstance(loaded["state_dict"], dict)
        assert isinstance(loaded.get("global_step", 0), int)

    fuzz(read, contents, request, short=150, full=15_000, errors=(CheckpointError,))


# Configurations

VALUES = ("0", "-1", "1", "7", "1e3", "nan", "inf", "null", "true", "[]", "[1,2]", "{a:1}", "abc")
VALUES += ("''", "'", "${seed}", "a=b", "a,b", "1_000", "0x10", "~", "\u00e9", " ", "\\", "???")
VALUES += ("9" * 30, "[[1]]", "range(1,3)", "choice(1,2)", "/dev/null", "x" * 500)


def arguments() -> st.SearchStrategy[list[str]]:
    """Keys as they are, slightly wrong or made up, with options, values or anything."""
    config = compose_config([]).config
    keys = [*dict(leaves(config)), *groups(), "network.d_model", "_target_", "task._target_"]
    options = [option for names in groups().values() for option in names]
    key = st.one_of(
        st.sampled_from(keys),
        st.builds(
            lambda k, i, c: k[: i % len(k)] + c + k[i % len(k) :],
            st.sampled_from(keys),
            st.integers(0, 99),
            st.sampled_from(list("._/x+~@-")),
        ),
        st.text(max_size=12),
    )
    value = st.one_of(
        st.sampled_from([*VALUES, *options]),
        st.text(max_size=12),
        st.integers().map(str),
        st.floats().map(str),
    )
    one = st.one_of(st.builds("{}={}".format, key, value), st.text(max_size=20))
    return st.lists(one, min_size=1, max_size=4)


def test_configurations_are_composed_or_refused(request):
    fuzz(compose_config, arguments(), request, short=60, full=5_000, errors=(ConfigError,))


def test_bad_command_lines_are_one_line_each_and_soon(request, tmp_path):
    """As real processes; only such as are bad, the others would train."""
    n = 200 if request.config.getoption("--full") else 3
    bad: list[list[str]] = []

    def collect(words):
        if len(bad) < n and not any("\0" in word for word in words):
            try:
                compose_config(words)
            except ConfigError:
                bad.append([w.encode("utf-8", "replace").decode() for w in words])

    settings(
        max_examples=20 * n, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )(given(arguments())(collect))()
    assert len(bad) == n
    for words in bad:
        if {"-h", "--help", "--cfg", "-m"} & {*words}:
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *words],
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 2, (words, done.stderr)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, (words, lines)
        assert lines[0].startswith("error: ")
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert not [*tmp_path.iterdir()]
