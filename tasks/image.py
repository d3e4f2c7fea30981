"""Image classification as a task."""

import hashlib
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fwlight.types import DataError, ImageBatch
from tasks.draws import EvalSets, TrainDraws, next_of, seeded
from tasks.image_sets import SPLITS, open_images
from tasks.position import SCORES, refuse_other_data, whose
from tasks.ranks import epoch_limit, ranks
from tasks.required import check_least


class ImageDataModule(lightning.LightningDataModule):
    """Labelled images of one size, in splits that are the same for every seed.

    Training goes through its images again and again, in a new order each time.

    Args:
        data: Where from; see `tasks.image_sets.open_images`.
        path: See there.
        shift: Most pixels that an image is moved by in training, in each direction; what comes in
            is 0. Drawn for every image anew.
        flip: Whether half of the images are mirrored in training.
        warp: Most that an image is turned, sheared, stretched and moved in training; see `warp`.
        batch_size: Images of a training batch, over all ranks.
        eval_batch_size: Images of an evaluation batch, over all ranks; changes no result.
        seed: Of the order and the movements.
        num_workers: Processes that make training batches ahead, on Linux and where else processes
            can be forked; changes no result.

    Raises:
        DataError: A number is too small.
    """

    def __init__(
        self,
        *,
        data: str = "digits",
        path: str | None = None,
        shift: int = 0,
        flip: bool = False,
        warp: float = 0.0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        seed: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_least(0, shift=shift)
        check_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.data, self._path = data, path
        self.shift, self.flip, self.warp = shift, flip, warp
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.num_workers = seed, num_workers
        self.splits: dict[str, ImageBatch] = {}
        """The images of each split; filled by `setup`."""
        self.tested_text = ""
        """Which images a checkpoint is tested on; known once it is."""
        self._kept: dict[str, Any] = {}

    # Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once.

        Raises:
            DataError: They cannot be used, or are others than those of the loaded checkpoint; one
                may be tested on any of its classes and size.
        """
        if self.splits:
            return
        classes, splits = open_images(self.data, path=self._path)
        now = {
            "classes": list(classes),
            "shape": list(splits["train"].pixels.shape[1:]),
            "fingerprints": {split: _hash(*splits[split]) for split in SPLITS},
        }
        if self._kept:
            self._compare(self._kept, now, scores=stage in SCORES)
            whose_own = whose(self._kept["fingerprints"]["test"], now["fingerprints"]["test"])
            n = len(splits["test"].labels)
            self.tested_text = f"{self._path or self.data}, {n:,} images; {whose_own}"
        self._kept = self._kept or now
        self.splits = {
            split: ImageBatch(*(torch.from_numpy(np.ascontiguousarray(x)) for x in images))
            for split, images in splits.items()
        }

    def train_dataloader(self) -> TrainDraws[ImageBatch]:
        """This rank's share of every training batch."""
        return TrainDraws(
            self.training_batch,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch_limit=epoch_limit(self.trainer),
            num_workers=self.num_workers,
            **ranks(self.trainer),
        )

    def val_dataloader(self) -> EvalSets[ImageBatch]:
        """This rank's share of the validation split."""
        return self._evaluation("valid")

    def test_dataloader(self) -> EvalSets[ImageBatch]:
        """This rank's share of the test split."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        return {"data": self.data, **self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the checkpoint's data; before `setup`, adopt its classes and size.

        Raises:
            DataError: The images are others.
        """
        refuse_other_data(state_dict, {"data": self.data})
        stored = {
            "classes": [str(name) for name in state_dict["classes"]],
            "shape": [int(n) for n in state_dict["shape"]],
            "fingerprints": {split: str(state_dict["fingerprints"][split]) for split in SPLITS},
        }
        if self._kept:
            self._compare(stored, self._kept)
        else:
            self._kept = stored

    # What the rest of a run asks of the data

    @property
    def network_sizes(self) -> dict[str, Any]:
        """What a network is built with, once `setup` or `load_state_dict` has run."""
        return {"n_classes": len(self._kept["classes"]), "shape": tuple(self._kept["shape"])}

    def training_batch(self, step: int) -> ImageBatch:
        """All ranks' images of a training step: the next ones of one order after the other."""
        images, labels = self.splits["train"]
        chosen = next_of(len(labels), step, batch_size=self.batch_size, seed=self.seed)
        moved = move(
            images[chosen],
            shift=self.shift,
            flip=self.flip,
            generator=seeded("move", self.seed, step),
        )
        if self.warp:
            moved = warp(moved, self.warp, generator=seeded("warp", self.seed, step))
        return ImageBatch(moved, labels[chosen])

    # Parts

    def _evaluation(self, split: str) -> EvalSets[ImageBatch]:
        return EvalSets(
            [self.splits[split]], batch_size=self.eval_batch_size, **ranks(self.trainer)
        )

    def _compare(
        self, stored: dict[str, Any], now: dict[str, Any], *, scores: bool = False
    ) -> None:
        for name in ("classes", "shape") if scores else stored:
            if stored[name] != now[name]:
                raise DataError(
                    f"the checkpoint was trained on other images, their {name} are not the same; "
                    "give the old task.path, or start anew in another run_dir"
                )


def move(images: Tensor, *, shift: int, flip: bool, generator: Generator) -> Tensor:
    """Move each image `[b, c, h, w]` by up to `shift` pixels, and mirror half of them.

    What comes in at an edge is 0.
    """
    b, _, h, w = images.shape
    down, right = torch.randint(-shift, shift + 1, (2, b, 1), generator=generator)
    rows, columns = torch.arange(h) - down, torch.arange(w) - right
    if flip:
        mirrored = torch.rand(b, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, w - 1 - columns, columns)
    padded = F.pad(images, [shift] * 4).movedim(1, -1)
    places = (rows + shift)[:, :, None], (columns + shift)[:, None, :]
    return padded[torch.arange(b)[:, None, None], *places].movedim(-1, 1)


def warp(images: Tensor, most: float, *, generator: Generator) -> Tensor:
    """Map each image `[b, c, h, w]` of bytes by an affine map of its own; what comes in is 0.

    In coordinates from -1 to 1 each of the six numbers of the map differs from those of the
    identity by up to `most`, evenly drawn. Between pixels values are interpolated linearly.
    """
    differences = torch.empty(len(images), 2, 3).uniform_(-most, most, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3) + differences, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(images.dtype)


def _hash(pixels: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    for part in (pixels, labels):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
