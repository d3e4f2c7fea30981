"""Fixtures of the operator tests."""

import jaxtyping
import pytest


@pytest.fixture
def no_annotation_checks(monkeypatch):
    """Run as users do, without the checks of annotations that the test run adds."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
