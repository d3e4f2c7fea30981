"""What is measured of a classifier's robustness, in rows of one table."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from fwlight.robustness.attacks import METHODS, Network, deepfool, pgd
from fwlight.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fwlight.robustness.waves import hartley, low_share, spectrum

BATCH = 256
"""Images that the network sees at a time."""
WAVE = 0.125
"""Root mean square of a wave that is added: norm 4 over 32 x 32 pixels (Yin et al. 2019)."""


class Row(NamedTuple):
    """One measured number."""

    measure: str
    """`clean`, `corruption`, `hole`, `wave`, `smallest` (DeepFool) or `pgd`."""
    kind: str
    """Which corruption, frequency, attack or value."""
    level: int | float
    """Its severity, the hole's share of the area, or most that a value is changed by."""
    value: int | float
    """The share of images that are in the wrong class, if `kind` does not say another thing."""


@dataclass
class Measured:
    """All that is measured of a network."""

    rows: list[Row] = field(default_factory=list)
    waves: Tensor | None = None
    """Errors `[h, w]` by frequency of a wave, low ones first."""
    spectrum: Tensor | None = None
    """Shares `[h, w]` of the energy of the smallest changes, by frequency."""
    examples: dict[str, Tensor] = field(default_factory=dict)
    """Images `[n, c, h, w]` to show."""

    def of(self, measure: str, kind: str) -> dict[int | float, int | float]:
        """Return values by level."""
        return {x.level: x.value for x in self.rows if (x.measure, x.kind) == (measure, kind)}


def measure(
    network: Network,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    holes: Sequence[float],
    eps: Sequence[float],
    attacked: int,
    seed: int,
    say: Callable[[str], object] = lambda _: None,
) -> Measured:
    """Measure everything.

    Args:
        network: In evaluation mode.
        images: Values in [0, 1].
        labels: The right classes.
        holes: Shares of an image's area that a hole has.
        eps: Most that a value is changed by in an attack.
        attacked: So many images, the first ones, are attacked and have waves added.
        seed: Of all that is random; what is drawn does not depend on the network.
        say: Is told what was found, a line a measure.
    """
    found = Measured()
    clean = error(network, images, labels)
    found.rows.append(Row("clean", "error", 0, clean))
    say(f"clean: error {clean:.4f}")
    _corruptions(found, network, images, labels, seed=seed)
    say(f"corruptions: mean error {mean_error(found.rows):.4f}")
    for share in holes:
        wrong = error(network, pierce(images, share, seed=seed), labels)
        found.rows.append(Row("hole", "error", share, wrong))
    say(f"holes: errors {_listed(found.of('hole', 'error'))}")
    images, labels = images[:attacked], labels[:attacked]
    _waves(found, network, images, labels, seed=seed)
    say(f"waves: mean error {float(_some(found.waves).mean()):.4f}")
    _smallest(found, network, images)
    say(f"smallest changes: median norm {found.of('smallest', 'median_norm')[0]:.4f}")
    for method in METHODS:
        for most in eps:
            drawn = Generator().manual_seed(seed)
            moved = [
                pgd(network, x, y, eps=most, method=method, drawn=drawn)
                for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
            ]
            wrong = error(network, torch.cat(moved), labels)
            found.rows.append(Row("pgd", method, most, wrong))
        say(f"pgd, {method}: errors {_listed(found.of('pgd', method))}")
    return found


@torch.no_grad()
def error(network: Network, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are in the wrong class."""
    right = 0
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        right += int((network(x).argmax(-1) == y).sum())
    return 1 - right / len(labels)


def pierce(images: Float[Tensor, "b c h w"], share: float, *, seed: int) -> Tensor:
    """Fill a square of an image, at a random place within it, with the image's mean colour.

    Args:
        images: The images.
        share: Of the area that the square has, as near as whole pixels come to it.
        seed: Of the places.
    """
    b, _, h, w = images.shape
    side = min(h, w, max(1, round(math.sqrt(share * h * w))))
    places = torch.rand(2, b, 1, generator=Generator().manual_seed(seed)).to(images.device)
    inside = []
    for n, place in zip((h, w), places, strict=True):
        first = (place * (n - side + 1)).long()
        at = torch.arange(n, device=images.device)
        inside.append((at >= first) & (at < first + side))
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return torch.where(hole, images.mean((2, 3), keepdim=True), images)


def mean_error(rows: Sequence[Row]) -> float:
    """Return the mean error over corruptions and severities."""
    errors = [row.value for row in rows if row.measure == "corruption"]
    return sum(errors) / len(errors)


def relative_errors(rows: Sequence[Row], against: Sequence[Row]) -> dict[str, float]:
    """Return CE_c of every corruption: the sum of its errors over that of a baseline's.

    (Hendrycks and Dietterich 2019, section 4.2.) Their mean is mCE. It is not a number where the
    baseline makes no errors.
    """

    def total(of: Sequence[Row], kind: str) -> float:
        return math.fsum(x.value for x in of if (x.measure, x.kind) == ("corruption", kind))

    kinds = [(kind, total(against, kind)) for kind in CORRUPTIONS]
    return {kind: total(rows, kind) / base if base else math.nan for kind, base in kinds}


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows((*row[:2], f"{row.level:g}", f"{row.value:.6g}") for row in rows)
    return file.getvalue()


def from_csv(text: str) -> list[Row]:
    """Return the rows of a table.

    Raises:
        ValueError: If it is none.
    """
    heading, *lines = csv.reader(io.StringIO(text))
    if tuple(heading) != Row._fields or any(len(line) != len(heading) for line in lines):
        raise ValueError(f"its columns are not {', '.join(Row._fields)}")
    return [Row(measure, kind, float(x), float(y)) for measure, kind, x, y in lines]


def _corruptions(
    found: Measured, network: Network, images: Tensor, labels: Tensor, *, seed: int
) -> None:
    for kind in CORRUPTIONS:
        shown = [images[:1]]
        for severity in SEVERITIES:
            corrupted = corrupt(images, kind, severity, seed=seed)
            wrong = error(network, corrupted, labels)
            found.rows.append(Row("corruption", kind, severity, wrong))
            shown.append(corrupted[:1])
        found.examples[kind] = torch.cat(shown)


def _waves(found: Measured, network: Network, images: Tensor, labels: Tensor, *, seed: int) -> None:
    h, w = images.shape[-2:]
    drawn = Generator().manual_seed(seed)
    signs = torch.randint(2, (*images.shape[:2], 1, 1), generator=drawn).to(images) * 2 - 1
    size = WAVE * math.sqrt(h * w)
    errors = [
        error(network, (images + size * signs * wave).clamp(0, 1), labels)
        for wave in hartley(h, w).to(images).flatten(0, 1)
    ]
    found.waves = torch.tensor(errors).view(h, w)
    places = [(i, j) for i in range(h) for j in range(w)]
    found.rows += [
        Row("wave", f"{i} {j}", size, wrong) for (i, j), wrong in zip(places, errors, strict=True)
    ]


def _smallest(found: Measured, network: Network, images: Tensor) -> None:
    pairs = [deepfool(network, x) for x in images.split(BATCH)]
    changes, deceived = (torch.cat(part) for part in zip(*pairs, strict=True))
    norms = changes.flatten(1).norm(dim=1)
    moved = deceived & (norms > 0)
    found.rows.append(Row("smallest", "share_found", 0, float(deceived.float().mean())))
    found.rows.append(Row("smallest", "median_norm", 0, float(norms[moved].nanmedian())))
    found.spectrum = spectrum(changes[moved])
    found.rows.append(Row("smallest", "low_share", 0, low_share(found.spectrum)))
    found.examples["clean"] = images[:6]
    found.examples["smallest"] = changes[:6]


def _listed(values: dict[int | float, int | float]) -> str:
    return ", ".join(f"{value:.3f} ({level:g})" for level, value in values.items())


def _some(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
