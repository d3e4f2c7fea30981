import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_constraints_are_exact_public_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 20
    for line in pinned:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


def test_compromised_lightning_versions_are_excluded() -> None:
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (low,) = re.findall(r'"lightning>=([0-9.]+)"', metadata)
    assert tuple(map(int, low.split("."))) > (2, 6, 3)
