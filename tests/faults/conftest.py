"""The training that faults are injected into, and what it makes if left alone."""

from pathlib import Path

import pytest

from tests.faults import processes, victims


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return victims.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def tiny(text) -> list[str]:
    """The arguments of a training of seconds."""
    # TensorBoard's figures would take half of its time.
    return [*processes.TINY, "logger=none", f"task.path={text}"]


@pytest.fixture(scope="session")
def shown(text) -> list[str]:
    """The same one, in TensorBoard too."""
    return [*processes.TINY, f"task.path={text}"]


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    ended = processes.run([*tiny, f"run_dir={folder / 'run'}"], folder=folder)
    assert ended.code == 0, ended.err
    return folder / "run"
