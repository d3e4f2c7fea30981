"""Shared fixtures. Reference data lives beside the checkout; tests that need it skip without it."""

import copy
import functools
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import omegaconf
import pytest
from hydra._internal.core_plugins import file_config_source

ROOT = Path(__file__).resolve().parent.parent

pytest_plugins = ["tests.faults.matrix"]

# The processes that tests start are no tasks of a batch job, also where the tests run in one.
for name in [name for name in os.environ if name.startswith("SLURM_")]:
    del os.environ[name]

# A configuration is some forty files and a hundred interpolations, and hundreds are composed: what
# has been read before is kept, which is a third of the time, and half of that of a sweep's points.
omegaconf.base.parse = functools.cache(omegaconf.base.parse)


@functools.cache
def _read(path: str, modified: int, size: int) -> omegaconf.Container:
    return omegaconf.OmegaConf.load(path)


def _load(file) -> omegaconf.Container:
    status = os.fstat(file.fileno())
    return copy.deepcopy(_read(os.path.abspath(file.name), status.st_mtime_ns, status.st_size))


file_config_source.OmegaConf = SimpleNamespace(load=_load)


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="run every fault and every fuzzed input, not only what fits into make test",
    )


def pytest_collection_modifyitems(config, items):
    """Leave out what only --full runs; files with slow tests come first.

    So no process is left with a test of minutes when the others have ended. A file's tests stay
    together, as they share what its fixtures make.
    """
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("full")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference numbers and real text beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the reference folder ../shared is not there")
    return path


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 at which processes may meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
