import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def test_constraints_are_exact_public_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 20
    for line in pinned:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


KNOWN_BAD = {
    # compromised wheels (GHSA-w37p-236h-pfx3), code from hyper-parameters in spite of weights_only
    "lightning": ("2.6.2", "2.6.3", "2.6.5"),
    # code in spite of weights_only (CVE-2025-32434, CVE-2026-24747)
    "torch": ("2.5.1", "2.9.0", "2.9.1"),
    "PyYAML": ("5.3.1",),  # code from a document (CVE-2020-14343)
}


def test_known_bad_versions_cannot_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    required = {r.name: r.specifier for r in map(Requirement, listed)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {r.name: r.specifier for r in map(Requirement, (x for x in lines if x[:1] != "#"))}
    for name, versions in KNOWN_BAD.items():
        assert not [version for version in versions if version in required[name]]
        assert not [version for version in versions if version in pinned[name]]
