import hashlib
import os
import subprocess
import sys

import pytest

from fwlight.types import DataError
from tasks.text import stdlib_prose
from tasks.text.stdlib_prose import prose_splits
from tasks.text.tokenizer import tokenize

_FINGERPRINT = """
import hashlib, sys
from tasks.text.stdlib_prose import prose_splits
print(hashlib.sha256(repr(prose_splits()).encode()).hexdigest())
imported = {"antigravity", "this", "idlelib", "turtle", "distutils"} & set(sys.modules)
assert not imported, imported
"""


@pytest.fixture(scope="module")
def words():
    return {
        split: [tuple(tokenize(line)) for line in lines] for split, lines in prose_splits().items()
    }


def test_splits_have_sensible_sizes(words):
    tokens = {split: sum(map(len, lines)) for split, lines in words.items()}
    total = sum(tokens.values())
    assert total > 200_000
    assert tokens["train"] / total == pytest.approx(0.90, abs=0.05)
    # Modules are split as wholes, which differ with the version of Python: 0.09 in 3.13.
    assert tokens["valid"] / total == pytest.approx(0.05, abs=0.045)
    assert tokens["test"] / total == pytest.approx(0.05, abs=0.045)


def test_paragraphs_are_unique_over_all_splits(words):
    lines = [line for split in words.values() for line in split]
    assert len(lines) == len(set(lines))


def test_paragraphs_are_lines_with_single_spaces():
    for split in prose_splits().values():
        assert all(line == " ".join(line.split()) for line in split)


def test_test_text_is_not_in_the_training_text(words):
    def runs(split, n=8):
        return [line[i : i + n] for line in words[split] for i in range(len(line) - n + 1)]

    known = set(runs("train"))
    for split in ("valid", "test"):
        found = runs(split)
        assert sum(run in known for run in found) / len(found) < 0.03


def test_paragraphs_are_prose(words):
    lines = [line for split in words.values() for line in split]
    assert sum(word == ">" for line in lines for word in line) < 1e-3 * sum(map(len, lines))
    assert sum("the" in line or "a" in line for line in lines) > 0.6 * len(lines)
    assert not any("::=" in " ".join(line) for line in lines)


def test_corpus_is_the_same_in_another_process_and_imports_no_module():
    result = subprocess.run(
        [sys.executable, "-c", _FINGERPRINT],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = hashlib.sha256(repr(prose_splits()).encode()).hexdigest()
    assert result.stdout.strip() == expected


def _library(tmp_path, monkeypatch, files):
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(stdlib_prose.sysconfig, "get_path", lambda _: str(tmp_path))


def test_module_documents_hold_the_docstrings_of_modules_classes_and_functions(
    tmp_path, monkeypatch
):
    source = '''"""Of the module.

Second paragraph with `markup` and *stress*.

    >>> 1 + 1
    2
"""
raise SystemExit("was imported")
if True:
    class A:
        """Of the class."""
        async def f(self):
            """Of the method."""
            def g():
                """Of the inner function."""
def without(): return "No docstring."
'''
    files = {
        "pkg/mod.py": source,
        "test/test_mod.py": source,
        "pkg/tests/more.py": source,
        "site-packages/other.py": source,
        "broken.py": "def (",
        "binary.py": "\0",
    }
    _library(tmp_path, monkeypatch, files)
    documents = stdlib_prose._module_documents()
    assert list(documents) == ["pkg/mod.py"]
    assert [p for p in documents["pkg/mod.py"] if p.strip()] == [
        "Of the module.",
        "Second paragraph with markup and stress.",
        "Of the class.",
        "Of the method.",
        "Of the inner function.",
    ]


def test_python_without_its_library_s_sources_is_named(tmp_path, monkeypatch):
    _library(tmp_path, monkeypatch, {"os.py": '"""Only this one is left here."""'})
    monkeypatch.setattr(stdlib_prose, "_topic_documents", dict)
    with pytest.raises(DataError, match=r"only 1 documents in .* task\.data=text"):
        prose_splits.__wrapped__()
