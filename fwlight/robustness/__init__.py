"""How a classifier of images bears up: corruptions, holes, waves, and attacks on it."""

from fwlight.robustness.attacks import deepfool, pgd
from fwlight.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fwlight.robustness.measures import Measured, Row, measure

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Measured",
    "Row",
    "corrupt",
    "deepfool",
    "measure",
    "pgd",
]
