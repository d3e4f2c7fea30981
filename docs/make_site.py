"""Builds the documentation site: `python docs/make_site.py` from the root of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from nbconvert.writers import FilesWriter

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
TUTORIALS = "docs/tutorials"


def stage() -> None:
    """Copy the pages as they lie in the repository, so that their links lead on."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(
        ROOT / "docs", PAGES / "docs", ignore=shutil.ignore_patterns("*.py", "*.ipynb", "__*")
    )
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, PAGES)
    for page in PAGES.rglob("*.md"):  # on the site a tutorial is a page
        page.write_text(page.read_text("utf-8").replace(".ipynb)", ".md)"), "utf-8")


def run_tutorial(path: Path) -> None:
    """Execute a notebook and stage what it shows."""
    notebook = nbformat.read(path, as_version=4)
    execution = ExecutePreprocessor(timeout=600, startup_timeout=600)
    execution.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    body, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": path.stem, "unique_key": path.stem}
    )
    FilesWriter(build_directory=str(PAGES / TUTORIALS)).write(body, resources, path.stem)


def main() -> int:
    """Return the exit code of the build, which counts a warning as an error."""
    stage()
    shutil.rmtree(ROOT / "build" / "tutorials", ignore_errors=True)  # runs would not be made again
    # `python` in a notebook's commands is this one, as in an activated environment.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for path in sorted((ROOT / TUTORIALS).glob("*.ipynb")):
        run_tutorial(path)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
