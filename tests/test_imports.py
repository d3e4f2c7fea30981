"""Who may import whom, read from the source of every file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWN = ("fwlight", "tasks", "callbacks", "cli", "reports", "benchmarks", "train", "tests")

# Longest prefix of a file's module name -> what of ours and of others it may import. The standard
# library is free; a package may import itself.
LIBRARY = {"torch", "jaxtyping"}
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "fwlight": (set(), set()),
    "fwlight.errors": (set(), set()),
    "fwlight.extras": (set(), set()),
    "fwlight.__main__": (set(), set()),
    "fwlight.checks": (set(), set()),
    "fwlight.packing": (set(), LIBRARY),
    "fwlight.pipes": ({"fwlight.errors"}, set()),
    "fwlight.integrity": ({"fwlight.errors"}, set()),
    "fwlight.autocast": (set(), {"torch"}),
    "fwlight.cache": (set(), set()),
    "fwlight.compiling": (set(), {"torch"}),
    "fwlight.evaluation": ({"fwlight.compiling"}, {"torch"}),
    "fwlight.sharding": (set(), {"torch"}),
    "fwlight.tables": (set(), {"torch"}),
    "fwlight.types": ({"fwlight.errors"}, {"torch"}),
    "fwlight.ops": (
        {"fwlight.autocast", "fwlight.cache", "fwlight.errors", "fwlight.packing"},
        LIBRARY | {"fla"},
    ),
    "fwlight.feature_maps": ({"fwlight.checks", "fwlight.ops", "fwlight.packing"}, LIBRARY),
    "fwlight.mixers": (
        {"fwlight.autocast", "fwlight.checks", "fwlight.ops", "fwlight.feature_maps"}
        | {"fwlight.packing", "fwlight.tables"},
        LIBRARY,
    ),
    "fwlight.attention": ({"fwlight.mixers"}, set()),
    "fwlight.models": (
        {"fwlight.mixers", "fwlight.autocast", "fwlight.checks", "fwlight.evaluation"}
        | {"fwlight.types", "fwlight.packing", "fwlight.tables"},
        LIBRARY,
    ),
    "fwlight.models.activations": ({"fwlight.checks", "fwlight.ops.native"}, LIBRARY),
    "fwlight.models.cross_entropy": ({"fwlight.types", "fwlight.ops.native"}, LIBRARY),
    "fwlight.models.dropout": ({"fwlight.mixers", "fwlight.models", "fwlight.ops.native"}, LIBRARY),
    "fwlight.diagnostics": (set(), LIBRARY),
    "fwlight.diagnostics.lpq": ({"fwlight.sharding"}, LIBRARY),
    "fwlight.diagnostics.metric": ({"fwlight.diagnostics"}, LIBRARY | {"torchmetrics"}),
    "fwlight.diagnostics.layers": (
        {"fwlight.diagnostics", "fwlight.mixers", "fwlight.evaluation", "fwlight.types"},
        LIBRARY,
    ),
    "fwlight.diagnostics.changes": (
        {"fwlight.diagnostics", "fwlight.mixers", "fwlight.packing"},
        LIBRARY,
    ),
    "fwlight.diagnostics.interventions": (
        {"fwlight.diagnostics", "fwlight.mixers", "fwlight.evaluation", "fwlight.types"},
        LIBRARY,
    ),
    "fwlight.diagnostics.layer_capacity": ({"fwlight.diagnostics", "fwlight.mixers"}, LIBRARY),
    "fwlight.diagnostics.figures": ({"fwlight.diagnostics"}, {"torch", "matplotlib"}),
    "fwlight.diagnostics.findings": ({"fwlight.diagnostics"}, LIBRARY),
    "fwlight.diagnostics.calls": ({"fwlight.mixers"}, LIBRARY),
    "fwlight.diagnostics.attached": (
        {"fwlight.diagnostics", "fwlight.errors", "fwlight.evaluation", "fwlight.feature_maps"}
        | {"fwlight.mixers", "fwlight.ops", "fwlight.types"},
        LIBRARY,
    ),
    "fwlight.diagnostics.losses": (
        {"fwlight.diagnostics", "fwlight.evaluation", "fwlight.types"},
        LIBRARY,
    ),
    "fwlight.diagnostics.comparison": ({"fwlight.diagnostics", "fwlight.pages"}, set()),
    "fwlight.diagnose_hf": (
        {"fwlight.diagnostics", "fwlight.errors", "fwlight.extras", "fwlight.types"},
        {"torch", "tokenizers", "transformers"},
    ),
    "fwlight.diagnostics.report": ({"fwlight.diagnostics", "fwlight.pages"}, LIBRARY),
    "fwlight.diagnostics.worth_report": ({"fwlight.diagnostics", "fwlight.pages"}, set()),
    "fwlight.pages": (set(), set()),
    "fwlight.robustness": (set(), LIBRARY),
    "fwlight.robustness.corruptions": ({"fwlight.robustness"}, LIBRARY | {"numpy", "PIL"}),
    "fwlight.robustness.figures": ({"fwlight.robustness"}, {"torch", "matplotlib"}),
    "fwlight.robustness.report": ({"fwlight.robustness", "fwlight.pages"}, set()),
    "fwlight.training": (
        {"fwlight.errors", "fwlight.types", "fwlight.models", "fwlight.integrity"}
        | {"fwlight.packing", "fwlight.mixers", "fwlight.evaluation", "fwlight.sharding"},
        LIBRARY | {"lightning", "torchmetrics", "sacrebleu"},
    ),
    "fwlight.lightning_internals": ({"fwlight.errors"}, {"lightning"}),
    "fwlight.durations": (set(), set()),
    "fwlight.runs": (
        {"fwlight.durations", "fwlight.errors", "fwlight.extras"},
        {"filelock", "yaml"},
    ),  # reads files, and needs no torch
    "fwlight.run": (
        {"fwlight.errors", "fwlight.types", "fwlight.models", "fwlight.training"}
        | {"fwlight.evaluation", "fwlight.integrity", "fwlight.diagnostics"}
        | {"fwlight.lightning_internals", "fwlight.pipes", "fwlight.robustness"}
        | {"fwlight.runs", "fwlight.compiling", "fwlight.sharding"},
        {"filelock", "torch", "lightning", "tensorboard", "tqdm"},
    ),
    "fwlight.run.tensorboard": ({"fwlight.run"}, {"torch", "lightning", "matplotlib"}),
    "tasks": ({"fwlight.types"}, {"torch", "lightning"}),
    "tasks.graphs": (set(), {"numpy"}),
    "tasks.graph_pomdp": ({"fwlight.types", "tasks"}, {"numpy", "torch", "lightning"}),
    "tasks.image_sets": (
        {"fwlight.types", "tasks.io", "tasks.image_files"},
        {"numpy", "sklearn", "mlxtend"},
    ),
    "tasks.image_files": ({"fwlight.types"}, {"numpy", "PIL"}),
    "tasks.image": ({"fwlight.types", "tasks"}, {"numpy", "torch", "lightning"}),
    "tasks.translation": ({"fwlight.types", "tasks"}, {"lightning", "tokenizers", "torch"}),
    "tasks.io": ({"fwlight.cache", "fwlight.types", "fwlight.errors", "fwlight.pipes"}, set()),
    "tasks.io.cache": ({"fwlight.cache", "fwlight.errors", "tasks.io"}, {"numpy", "torch"}),
    "tasks.io.locks": ({"fwlight.errors"}, {"filelock"}),
    "tasks.io.transfers": ({"fwlight.errors"}, {"tqdm"}),
    "tasks.text": ({"fwlight.errors", "fwlight.types", "tasks.io", "tasks.required"}, set()),
    "tasks.text.documents": ({"fwlight.types", "tasks.text"}, {"torch"}),
    "tasks.text.bigrams": (set(), {"torch"}),
    **dict.fromkeys(
        [f"tasks.text.{x}" for x in ("tokens", "learning")],
        ({"fwlight.types", "tasks.io", "tasks.text"}, {"numpy"}),
    ),
    "tasks.text.byte_pairs": (
        {"fwlight.types", "tasks.io", "tasks.text"},
        {"numpy", "tokenizers"},
    ),
    "tasks.text.encoding": ({"fwlight.errors", "tasks.io", "tasks.text"}, {"numpy", "torch"}),
    "tasks.text.bpe": ({"fwlight.types"}, {"tokenizers"}),
    "tasks.text.cldr": ({"fwlight.types"}, {"babel"}),
    "tasks.text.pair_files": (
        {"fwlight.types", "tasks.io", "tasks.text", "tasks.pairs"},
        {"numpy", "tokenizers"},
    ),
    "callbacks": (
        {"fwlight.diagnostics", "fwlight.models", "fwlight.training"}
        | {"fwlight.durations", "fwlight.lightning_internals", "fwlight.sharding"},
        {"torch", "lightning", "matplotlib", "tqdm"},
    ),
    "cli": ({"fwlight.errors", "fwlight.integrity"}, {"hydra", "omegaconf", "yaml"}),
    "cli.building": (
        {"cli.folders", "cli.launch", "cli.room", "fwlight.compiling", "fwlight.errors"}
        | {"fwlight.integrity", "fwlight.models"},
        {"hydra", "lightning"},
    ),
    "cli.sweep": (
        {"cli", "fwlight.errors", "fwlight.runs", "reports.one_key"},
        set(),
    ),
    "cli.launchers": ({"cli", "fwlight.errors", "fwlight.runs"}, set()),
    "cli.sweep_progress": ({"fwlight.durations", "fwlight.runs"}, set()),
    "reports": ({"fwlight.runs"}, {"torch", "yaml", "matplotlib"}),
    "cli.room": ({"fwlight.errors", "cli.kinds", "cli.schema", "cli.stored"}, {"torch"}),
    "cli.acting": (
        {"cli", "fwlight", "fwlight.ops.native", "fwlight.run"}
        | {"fwlight.errors", "fwlight.integrity"},
        set(),
    ),
    "cli.commands": ({"cli", "fwlight", "fwlight.errors", "fwlight.run"}, set()),
    "cli.main": (
        {"cli", "fwlight", "fwlight.errors", "fwlight.extras", "fwlight.run"},
        set(),
    ),
    "train": ({"cli"}, set()),
}
PACKAGES = ("fwlight", "tasks", "callbacks", "cli", "reports")
FILES = sorted([path for name in PACKAGES for path in (ROOT / name).rglob("*.py")])
FILES.append(ROOT / "train.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def reaches(module: str, package: str) -> bool:
    """Say whether leave to import `package` covers `module`; fwlight alone is its version."""
    return module == package if package == "fwlight" else inside(module, package)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            module = node.module or ""
            if (ROOT / module.replace(".", "/")).is_dir():
                # `from package import name`: the name may be a module
                for alias in node.names:
                    target = ROOT / module.replace(".", "/") / alias.name
                    found = target.is_dir() or target.with_suffix(".py").is_file()
                    yield f"{module}.{alias.name}" if found else module
            else:
                yield module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_arrows(path):
    name = module_name(path)
    package = max((p for p in ALLOWED if inside(name, p)), key=len)
    own, others = ALLOWED[package]
    for module in imports(path):
        root = module.split(".")[0]
        if root in OWN:
            assert any(reaches(module, p) for p in (*own, package)), (
                f"{name} must not import {module}"
            )
        elif root not in sys.stdlib_module_names:
            assert root in others, f"{name} must not import {module}"


def test_imports_table_knows_every_package():
    for path in FILES:
        name = module_name(path)
        assert any(reaches(name, package) for package in ALLOWED), name


def test_imports_operators_are_functions():
    for path in (ROOT / "fwlight" / "ops").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "Module" not in names, f"{path.name} holds a module; operators are functions"


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_imports_library_needs_torch_and_jaxtyping_only():
    loaded = loaded_after(
        "import fwlight.diagnostics, fwlight.ops\nfrom fwlight.mixers import MultiHeadAttention"
    )
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "torchmetrics", "hydra", "omegaconf"}
    assert not loaded & {"tensorboard", "matplotlib", "tokenizers", "sacrebleu", "fla", "cli"}
    assert "beartype" not in loaded


def test_imports_errors_and_configuration_load_no_torch():
    assert "torch" not in loaded_after(
        "import fwlight.errors, fwlight.runs, train, cli.composition, cli.sweep"
    )


def test_imports_private_names_of_lightning_stand_in_one_file():
    private = re.compile(r"(trainer|loop|loops|connector)\._[a-z]|lightning.* import .*\b_[a-zA-Z]")
    found = {x for x in FILES if private.search(x.read_text(encoding="utf-8"))}
    assert [module_name(x) for x in found] == ["fwlight.lightning_internals"]
