"""English prose that every Python brings along: its own library's docstrings and help topics.

A document is a module file (all its docstrings) or a `pydoc` topic. Modules are parsed and never
imported; test packages and third-party packages are left out. Of each document the paragraphs that
are prose remain (doctests, code, tables and grammars go). Help topics quote each other and modules
repeat standard sentences, so a paragraph that occurred before, in any document, is dropped: no
paragraph of the test split is in the training split.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from fwlight.types import DataError
from tasks.text.tokenizer import tokenize

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_NESTED_STATEMENTS = ("body", "orelse", "finalbody", "handlers")
_CODE_MARKS = frozenset("=[]{}<>+/\\|&@#%^~$")
_SOMETIMES_CODE = frozenset(["(", ")", "()", ":", ";", "*"])
_MAX_CODE_SHARE = 0.10
_MAX_MARK_SHARE = 0.25
_MIN_WORDS = 3
_MARKUP = (
    (re.compile(r"(?m)^\s*([=*~^-])\1{2,}\s*$"), ""),  # lines under headings
    (re.compile(r":\w+:`|`"), ""),  # ``literal``, `name`, :class:`Name`
    (re.compile(r"(?<![\w*])(\*{1,2})(\w[^*\n]*?)\1(?![\w*])"), r"\2"),  # *name*, **name**
    (re.compile(r"(?ms)^\s*>>> .*"), ""),  # a doctest, to the paragraph's end
)
_VALID_PER_MILLE = 50
_TEST_PER_MILLE = 50
_MIN_DOCUMENTS = 100


@functools.cache
def prose_splits() -> dict[str, tuple[str, ...]]:
    """Paragraphs of the splits `train`, `valid` and `test`, each a line with single spaces.

    A document belongs to one split only, drawn by the SHA-256 of its name: about 90, 5 and 5 % of
    the documents. The same hash orders the documents, so that the parts of a package, which repeat
    each other's phrases, are spread.

    Raises:
        DataError: this Python was installed without its library's sources.
    """
    documents = {**_module_documents(), **_topic_documents()}
    if len(documents) < _MIN_DOCUMENTS:
        raise DataError(
            f"task.data=stdlib found only {len(documents)} documents in "
            f"{sysconfig.get_path('stdlib')}: this Python lacks its library's sources; "
            "use task.data=text with files of your own"
        )
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    seen: set[tuple[str, ...]] = set()
    for digest, name in sorted((_digest(name), name) for name in documents):
        split = splits[_split_of(digest)]
        for paragraph in documents[name]:
            words = tuple(tokenize(paragraph))
            if words not in seen and _is_prose(words):
                split.append(" ".join(paragraph.split()))
                seen.add(words)
    return {name: tuple(paragraphs) for name, paragraphs in splits.items()}


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _split_of(digest: str) -> str:
    per_mille = int(digest[-8:], 16) % 1000
    if per_mille < _VALID_PER_MILLE:
        return "valid"
    return "test" if per_mille < _VALID_PER_MILLE + _TEST_PER_MILLE else "train"


def _is_prose(words: tuple[str, ...]) -> bool:
    code = sum(word in _CODE_MARKS for word in words)
    marks = code + sum(word in _SOMETIMES_CODE for word in words)
    plain = sum(word.isalpha() for word in words)
    few_marks = code <= _MAX_CODE_SHARE * len(words) and marks <= _MAX_MARK_SHARE * len(words)
    return plain >= _MIN_WORDS and few_marks


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
        yield paragraph


def _module_documents() -> dict[str, list[str]]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts):
            paragraphs = [p for text in _docstrings(path) for p in _paragraphs(text)]
            if paragraphs:
                documents[relative.as_posix()] = paragraphs
    return documents


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        # Templates of other tools and files of other versions lie between the modules.
        return
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
        # Only statements: definitions are never inside an expression, and those are the most nodes.
        nested = [child for field in _NESTED_STATEMENTS for child in getattr(node, field, ())]
        pending.extend(reversed(nested))


def _topic_documents() -> dict[str, list[str]]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return {}
    return {f"topic {name}": list(_paragraphs(text)) for name, text in topics.items()}
