"""The documentation site: tutorials run, no warning, whole, and nothing loaded from elsewhere."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def test_tutorials_are_kept_without_outputs() -> None:
    assert TUTORIALS
    for path in TUTORIALS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path


@pytest.mark.slow
def test_site_is_built_without_warnings_and_loads_nothing_from_elsewhere() -> None:
    command = [sys.executable, "docs/make_site.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    site = ROOT / "build" / "site"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, html in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?([^\"' >]+)", html)
        loaded += re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?([^\"' >]+)", html)
        assert not [x for x in loaded if re.match("(https?:)?//", x)], path
    for tutorial in TUTORIALS:
        assert ".png" in pages[site / "docs" / "tutorials" / f"{tutorial.stem}.html"], tutorial
    for room in ("ops", "feature_maps", "mixers", "models", "diagnostics"):
        public = importlib.import_module(f"fwlight.{room}").__all__
        html = pages[site / "docs" / "api" / f"{room}.html"]
        own = {x.rpartition(".")[2] for x in re.findall(r"id=[\"']?(fwlight\.[\w.]+)", html)}
        assert set(public) <= own, room
