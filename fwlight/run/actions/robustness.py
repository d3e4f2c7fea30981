"""Measure how a classifier of images bears up, and show it."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwlight.diagnostics.lpq import layer_norms, log_gap, log_rademacher
from fwlight.errors import ConfigError, StorageError
from fwlight.robustness.corruptions import LEAST_SIDE
from fwlight.robustness.measures import BATCH, Row, from_csv, measure, relative_errors, to_csv
from fwlight.robustness.report import robustness_page
from fwlight.run.actions import Restored
from fwlight.run.files import write_atomically
from fwlight.run.text import say
from fwlight.training.classification import ClassificationModule
from fwlight.types import IGNORE_INDEX


def robustness(
    of: Restored,
    *,
    images: int,
    attacked: int,
    holes: Sequence[float],
    eps: Sequence[float],
    against: str | None,
    seed: int,
    output: str | None,
) -> dict[str, Any]:
    """Measure a classifier on test images; write a table, and return a page.

    Args:
        of: Whose module is a `ClassificationModule`.
        images: Of the test split; more than there are is all.
        attacked: So many of them are attacked, and have waves added.
        holes: Shares of the area, each above 0 and below 1.
        eps: Most that a value in [0, 1] is changed by in an attack.
        against: A run folder with the table of a baseline, for mCE; None: no baseline.
        seed: Of all that is random.
        output: File of the page; the table is beside it, its name ends with .csv. None: the
            run's folder, or else beside the checkpoint.

    Returns:
        The page as "text", and as "output" where it goes if nothing else is said.

    Raises:
        ConfigError: The task has no images, they are too small, the page would be where the table
            is, or the baseline's table is missing or of other images.
        DataError: The checkpoint was trained on other data.
    """
    module = of.module
    if not isinstance(module, ClassificationModule):
        raise ConfigError(
            "action=robustness measures classifiers of images (task=image); the task of this "
            "checkpoint is another one"
        )
    if output and Path(output).suffix == ".csv":
        raise ConfigError(
            f"output={output} is where the table goes; end the page's name with .html"
        )
    of.data.setup("test")
    pixels, labels = (x.to(module.device) for x in _first(of.data, images))
    h, w = pixels.shape[-2:]
    if min(h, w) < LEAST_SIDE:
        raise ConfigError(
            f"action=robustness: images of {h} x {w} pixels are too small; the shorter side must "
            f"have at least {LEAST_SIDE}"
        )
    same = Row("images", _digest(pixels, labels, seed), len(labels), 0)
    baseline = None if against is None else _baseline(against, same)
    module.eval().requires_grad_(False)
    found = measure(
        module.network, pixels, labels, holes=holes, eps=eps, attacked=attacked, seed=seed, say=say
    )
    found.rows += _capacity(module, of.data)
    if baseline is not None:
        relative = relative_errors(found.rows, baseline)
        mce = sum(relative.values()) / len(relative)
        found.rows += [Row("relative", kind, 0, value) for kind, value in relative.items()]
        found.rows.append(Row("relative", "mce", 0, mce))
        say(f"mCE against {against}: {'not known' if math.isnan(mce) else f'{mce:.4f}'}")
    folder = Path(of.path).parent
    place = folder.parent if folder.name == "checkpoints" else folder
    page = Path(output) if output else place / "robustness.html"
    _write(page.with_suffix(".csv"), to_csv([same, *found.rows]))
    text = robustness_page(
        found,
        against=None if against is None or baseline is None else (against, baseline),
        title=f"Robustness of {of.path}",
        of=f"step {of.checkpoint.get('global_step')}, on {len(labels):,} test images of {h} x {w} "
        f"pixels, attacks and waves on {min(attacked, len(labels)):,} of them",
        configuration=of.configuration,
    )
    return {"text": text, "output": str(page)}


def _capacity(module: ClassificationModule, data: Any) -> list[Row]:
    """Return |V|_{1,inf} of all layers, training errors and, of a ReLU network, their bound."""
    found = layer_norms(module.network, p=1, q=math.inf)
    norms = {name: float(norm) for name, norm in found.items()}
    rows = [Row("norm_lpq", name, 0, norm) for name, norm in norms.items()]
    images, labels = data.splits["train"]
    margins = _margins(module, images, labels)
    for margin, kind in ((0.0, "train_error"), (1.0, "train_error_margin_1")):
        rows.append(Row("capacity", kind, margin, float((margins <= margin).double().mean())))
    if not getattr(module.network, "only_relu", False):
        say("norms: no bound, which is of ReLU networks of linear layers alone")
        return rows
    n, inputs = len(labels), images[0].numel()
    log_r = log_rademacher(list(norms.values()), n=n, inputs=inputs)
    classes = data.network_sizes["n_classes"]
    log10_gap = log_gap(log_r, n=n, classes=classes) / math.log(10)
    rows.append(Row("capacity", "log10_rademacher", 0, log_r / math.log(10)))
    rows.append(Row("capacity", "log10_gap", 0, log10_gap))
    says = "which says nothing: no error is above 1" if log10_gap >= 0 else ""
    say(
        f"norms: had they been chosen before the training, with probability .95 test error <= "
        f"training error at margin 1 + 10^{log10_gap:.2f}, {says}".rstrip(", ")
    )
    return rows


@torch.no_grad()
def _margins(module: ClassificationModule, images: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the right class's logit is above the largest other one, by image."""
    parts = [module.network(x.to(module.device) / 255).cpu() for x in images.split(BATCH)]
    logits, right = torch.cat(parts), labels[:, None]
    others = logits.scatter(1, right, -torch.inf).amax(1)
    return logits.gather(1, right)[:, 0] - others


def _first(data: Any, n: int) -> tuple[Tensor, Tensor]:
    """Return the first test images in [0, 1], and their labels."""
    batches = list(data.test_dataloader())
    pixels, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    known = labels != IGNORE_INDEX
    return pixels[known][:n] / 255, labels[known][:n]


def _digest(pixels: Tensor, labels: Tensor, seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {tuple(pixels.shape)}".encode())
    for part in ((255 * pixels).round().byte(), labels):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _baseline(run: str, same: Row) -> list[Row]:
    path = Path(run).expanduser() / "robustness.csv"
    how = "measure it with action=robustness ckpt=... first"
    try:
        rows = from_csv(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"robustness.against={run}: {path}: {reason}; {how}") from error
    if rows[:1] != [same]:
        raise ConfigError(
            f"robustness.against={run} was measured on other images or with another seed; {how}, "
            "with the same robustness.images and seed"
        )
    return rows


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
