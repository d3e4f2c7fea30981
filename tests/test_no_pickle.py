"""Nothing that is read can run code: not in the source, and not when it runs."""

import ast
import pickle

import pytest

from tests.test_imports import FILES, module_name
from train import main

UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "joblib.load", "dill.load", "dill.loads", "eval", "exec", "compile"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "torch.jit.load"),
    *("torch.hub.load", "load_from_checkpoint", "add_safe_globals"),
}
BETWEEN_RANKS = {"fwlight.run.agreement", "fwlight.run.rng", "fwlight.training.translation"}
"""What the ranks of a run tell each other, as Lightning's own strategies do too."""


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_source_reads_nothing_that_could_run(path):
    for name, given in calls(ast.parse(path.read_text(encoding="utf-8"))):
        assert name not in UNSAFE, name
        assert name.rpartition(".")[2] not in {"load_from_checkpoint", "add_safe_globals"}
        if name == "torch.load":
            assert given.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False"
        if name.endswith(("gather_object", "broadcast_object_list", "scatter_object_list")):
            assert module_name(path) in BETWEEN_RANKS


def test_whole_life_of_a_run_unpickles_nothing(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("Unpickler", "_Unpickler"):  # some libraries make classes of it when imported
        monkeypatch.setattr(pickle, name, type(name, (getattr(pickle, name),), {"load": refuse}))
    (tmp_path / "text").write_text("the cat sat on the mat .\n" * 200)
    run = ["size=tiny", "task.data=text", f"task.path={tmp_path / 'text'}", "task.seq_len=8"]
    run += [f"run_dir={tmp_path / 'run'}", "resume=auto", "optimizer.warmup_steps=1"]
    assert main([*run, "trainer.max_steps=2"]) == 0
    assert main([*run, "trainer.max_steps=3"]) == 0
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    assert main(["action=test", ckpt]) == 0
    assert main(["action=generate", ckpt, "prompt=the", "generate.max_new_tokens=2"]) == 0
