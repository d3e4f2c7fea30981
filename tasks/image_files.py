"""A folder of images: a folder for every class, whole in memory as bytes."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fwlight.types import DataError

MAX_BYTES = 4 << 30
"""Most bytes of all images of a folder, unpacked."""
_MAX_PIXELS = 1 << 24  # of one image
_GREY = ("1", "L", "LA")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises of a file that is no image, is cut or damaged."""

Files = Mapping[str, list[Path]]
"""The files of every class."""


def listed(folder: Path) -> dict[str, Files]:
    """Return the files by split and class, both in the order of their names.

    A folder with `train` and `test` in it (and perhaps `valid`) has folders of classes in each of
    them; any other has them itself, and what it holds is the split "".

    Raises:
        DataError: A folder is missing or empty, or splits have different classes.
    """
    if not folder.is_dir():
        raise DataError(f"task.path={folder} is no folder; it must hold a folder for every class")
    names = [split for split in ("train", "valid", "test") if (folder / split).is_dir()]
    if not {"train", "test"} <= set(names):
        return {"": _by_class(folder)}
    found = {split: _by_class(folder / split) for split in names}
    for split, files in found.items():
        if other := sorted(files.keys() ^ found["train"].keys()):
            raise DataError(f"{folder}: {split} and train do not both have the class {other[0]}")
    return found


def read(files: Files) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels `[n, c, h, w]`, uint8, and the number of each image's class, int64.

    c is 1 if all images are grey, else 3; transparency is left out.

    Raises:
        DataError: A file is no image, or of another size than the first.
    """
    numbers = [number for number, of_class in enumerate(files.values()) for _ in of_class]
    images = list(_images([file for of_class in files.values() for file in of_class]))
    if any(image.ndim == 3 for image in images):
        images = [
            np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image for image in images
        ]
        return np.stack(images).transpose(0, 3, 1, 2), np.array(numbers)
    return np.stack(images)[:, None], np.array(numbers)


def _images(files: list[Path]) -> Iterator[np.ndarray]:
    size = None
    for file in files:
        try:
            with Image.open(file) as image:
                if size is None:
                    _check_room(image.size, len(files))
                elif image.size != size:
                    raise DataError(
                        f"{file} has {_times(image.size)} pixels, {files[0]} {_times(size)}: "
                        "all images must be of one size"
                    )
                size = image.size
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"{file} has more than 8 bits a channel; convert it")
                yield np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
        except DataError:
            raise
        except _BROKEN as error:
            raise DataError(
                f"{file} is no image that can be read ({error}); remove or replace it"
            ) from error


def _check_room(size: tuple[int, int], n: int) -> None:
    pixels = size[0] * size[1]
    if pixels > _MAX_PIXELS or 3 * pixels * n > MAX_BYTES:
        raise DataError(
            f"task.path: {n:,} images of {_times(size)} pixels are too large to be kept in memory; "
            "make them smaller"
        )


def _by_class(folder: Path) -> Files:
    classes = sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} is empty of folders; it must hold one for every class")
    found = {}
    for of_class in classes:
        files = (x for x in of_class.rglob("*") if not x.is_dir() and not x.name.startswith("."))
        found[of_class.name] = sorted(files)
        if not found[of_class.name]:
            raise DataError(f"{of_class} holds no images; remove it, or put some into it")
        if other := next((x for x in found[of_class.name] if not x.is_file()), None):
            raise DataError(f"{other} is no file, and so no image")
    return found


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
