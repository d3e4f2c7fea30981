"""Shared fixtures. Reference data lives beside the checkout; tests that need it skip without it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference numbers and real text beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the reference folder ../shared is not there")
    return path
