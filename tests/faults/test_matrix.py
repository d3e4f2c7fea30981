"""The matrix of faults and its documentation."""

import re

from tests.faults.matrix import FAULTS
from tests.faults.processes import ROOT


def test_documentation_says_what_holds_for_every_fault():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == list(FAULTS)
