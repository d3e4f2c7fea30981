"""Faults of checkpoints: damaged, of something else, malicious."""

import os
import pickle
import random
import shutil
import zipfile

import pytest
import torch

from fwlight.errors import CheckpointError
from fwlight.run.checkpoint_io import load_checkpoint
from tests.exactness import identical
from tests.faults.processes import CONTEXT, assert_same_run, run


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = b""
    elif kind == "text":
        content = b"not a checkpoint\n" * 100
    elif kind == "truncated":
        content = content[: len(content) // 2]
    else:
        with zipfile.ZipFile(path) as archive:
            inside = archive.read(next(n for n in archive.namelist() if n.endswith(kind)))
        content[content.index(inside) + len(inside) // 2] ^= 1
    path.write_bytes(content)


KINDS = ("empty", "text", "truncated", "data.pkl", "data/0")


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    "kind", ["data/0", *(pytest.param(k, marks=pytest.mark.full) for k in KINDS[:4])]
)
@pytest.mark.parametrize("digest", [True, pytest.param(False, marks=pytest.mark.full)])
def test_damaged_checkpoint_is_refused(copy, tmp_path, kind, digest):
    path = copy / "checkpoints" / "last.ckpt"
    damage(path, kind)
    if not digest:
        path.with_name("last.ckpt.sha256").unlink()
    for arguments in (["action=test", f"ckpt={path}"], [f"resume={path}", "size=tiny"]):
        ended = run(arguments, folder=tmp_path / "output")
        assert ended.code == 4, ended.err
        assert len(ended.err.splitlines()) == 1
        assert str(path) in ended.errors[0]
        assert "damaged" in ended.errors[0]


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    "kind", ["data/0", *(pytest.param(k, marks=pytest.mark.full) for k in KINDS[:4])]
)
def test_automatic_resume_falls_back_to_the_newest_whole_one(tiny, whole, copy, tmp_path, kind):
    keep = ["callbacks.checkpoint.keep_every_n_train_steps=8"]
    arguments = [*tiny, f"run_dir={tmp_path / 'kept'}", "resume=auto", *keep]
    assert run(arguments, folder=tmp_path / "output").code == 0
    for name in ("last", "step-000024"):
        damage(tmp_path / "kept" / "checkpoints" / f"{name}.ckpt", kind)
    ended = run(arguments, folder=tmp_path / "output")
    assert ended.code == 0
    assert len(ended.warnings) == 3  # two are damaged, and which one it is then
    assert_same_run(tmp_path / "kept", whole)


@pytest.mark.fault(4)
def test_no_whole_checkpoint_at_all(tiny, copy, tmp_path):
    for path in (copy / "checkpoints").glob("*.ckpt"):
        damage(path, "truncated")
    ended = run([*tiny, f"run_dir={copy}", "resume=auto"], folder=tmp_path / "output")
    assert ended.code == 4
    assert len(ended.errors) == 1
    assert str(copy / "checkpoints") in ended.errors[0]


def at_random(whole, directory, seed):
    """Damage bytes in a place of chance, every other time in the archive's directory."""
    chance, content = random.Random(seed), bytearray(whole)
    kind = chance.choices(("flip", "byte", "cut", "zeros", "noise"), (20, 1, 1, 1, 1))[0]
    place = chance.randrange(directory if seed % 2 else 0, len(whole))
    end = min(len(whole), place + chance.choice((8, 512, 65536)))
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[place] = chance.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place:end] = bytes(end - place)
    else:
        content[place:end] = chance.randbytes(end - place)
    return bytes(content)


def load_damaged(path, seeds):
    """In a process of its own, which a wrong byte may crash: end well if nothing wrong is taken."""
    whole, expected = path.read_bytes(), load_checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    refused = 0
    for seed in seeds:
        path.write_bytes(at_random(whole, directory, seed))
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert identical(loaded, expected), f"seed {seed}"
    assert refused > len(seeds) / 2


@pytest.mark.fault(4)
@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.full) for i in (1, 2, 3))])
def test_random_damage_without_a_digest_is_refused_or_changes_no_value(request, copy, part):
    path = copy / "checkpoints" / "last.ckpt"
    path.with_name("last.ckpt.sha256").unlink()
    n = 600 if request.config.getoption("--full") else 60
    process = CONTEXT.Process(target=load_damaged, args=(path, range(part * n, part * n + n)))
    process.start()
    process.join()
    assert process.exitcode == 0


OTHERS = {
    "size.d_ff=128": ("size.d_ff=128", "size.d_ff=64"),
    "model=linear": ("model=linear", "model=delta_dpfp"),
    "model/feature_map=elu": ("model/feature_map=elu", "model/feature_map=dpfp"),
    "model.feature_map.nu=2": ("nu=2", "nu=1"),
    "task=retrieval": ("task=retrieval", "task=lm"),
    "task.seq_len=9": ("task.seq_len=9", "task.seq_len=8"),
    "task.batch_size=6": ("task.batch_size=6", "task.batch_size=4"),
}


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=() if change == "task=retrieval" else pytest.mark.full)
        for change in OTHERS
    ],
)
def test_resume_with_another_architecture_or_task_names_both_values(tiny, copy, tmp_path, change):
    given = [a for a in tiny if not a.startswith("task.")] if change.startswith("task=") else tiny
    given = [a for a in given if change != "task=retrieval" or not a.startswith(("size=", "callb"))]
    ended = run([*given, f"run_dir={copy}", "resume=auto", change], folder=tmp_path / "output")
    assert ended.code == 2, ended.err
    assert len(ended.errors) == 1
    assert all(word in ended.errors[0] for word in OTHERS[change]), ended.errors[0]


@pytest.mark.fault(12)
def test_resume_with_another_learning_rate_warns_and_uses_it(tiny, copy, tmp_path):
    longer = ["trainer.max_steps=26", "optimizer.lr=0.005"]
    ended = run([*tiny, f"run_dir={copy}", "resume=auto", *longer], folder=tmp_path / "output")
    assert ended.code == 0, ended.err
    assert len(ended.warnings) == 1
    assert "optimizer.lr=0.005 (was 0.001)" in ended.warnings[0]
    assert "trainer.max_steps=26 (was 24)" in ended.warnings[0]


@pytest.mark.fault(20)
@pytest.mark.parametrize("same_words", [False, True])
def test_other_text_than_the_checkpoints_is_refused(tiny, text, copy, tmp_path, same_words):
    lines = text.read_text().splitlines()
    other = tmp_path / "other.txt"
    if same_words:  # in another order
        random.Random(1).shuffle(lines)
    else:
        lines = [line.replace("w7", "new") for line in lines]
    other.write_text("\n".join(lines))
    arguments = [*tiny, f"run_dir={copy}", "resume=auto", f"task.path={other}"]
    ended = run([*arguments, "trainer.max_steps=26"], folder=tmp_path / "output")
    assert ended.code == 2, ended.err
    assert len(ended.errors) == 1
    assert "the checkpoint's vocabulary is another" in ended.errors[0]


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    "form",
    ["torch", *(pytest.param(f, marks=pytest.mark.full) for f in ("pickle", "instantiator"))],
)
def test_malicious_checkpoint_is_refused_and_not_run(tiny, copy, tmp_path, form):
    ran, path = tmp_path / "ran", copy / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    if form == "instantiator":
        content["hyper_parameters"] = {"_instantiator": "os.system"}
    else:
        content["payload"] = Payload(ran)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    path.with_name("last.ckpt.sha256").unlink()
    for arguments in (["action=test", f"ckpt={path}"], [*tiny, f"resume={path}"]):
        ended = run(arguments, folder=tmp_path / "output")
        assert ended.code == 4, ended.err
        assert len(ended.err.splitlines()) == 1
        assert str(path) in ended.errors[0]
    ended = run([*tiny, f"run_dir={copy}", "resume=auto"], folder=tmp_path / "output")
    assert ended.code == 0
    assert str(path) in ended.warnings[0]
    assert not ran.exists()


@pytest.mark.fault(22)
def test_checkpoint_that_is_a_url_is_refused(tiny, tmp_path):
    for argument in ("resume=http://127.0.0.1:9/last.ckpt", "ckpt=s3://bucket/last.ckpt"):
        action = ["action=test"] if argument.startswith("ckpt") else tiny
        ended = run([*action, argument], folder=tmp_path / "output")
        assert ended.code == 4
        assert "URL" in ended.errors[0]
