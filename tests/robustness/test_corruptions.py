"""Corruptions, each held to its formula or to another program's result."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from fwlight.robustness.blurs import defocused, moved, smoothed
from fwlight.robustness.corruptions import CORRUPTIONS, SEVERITIES, clouds, corrupt


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """Forty smooth images in colour, 28 x 28, with edges."""
    drawn = Generator().manual_seed(3)
    images = torch.stack([clouds(40, 32, decay=1.6, drawn=drawn) for _ in range(3)], dim=1)
    images = images[..., :28, :28]
    images[:, :, 8:20, 10:24] *= 0.4
    return 0.1 + 0.8 * images


def drawn(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(name: str, x: torch.Tensor, severity: int, seed: int = 0) -> torch.Tensor:
    kind = CORRUPTIONS[name]
    return kind.make(x, drawn(seed), *kind.values[severity - 1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_further_from_the_image(name, photo):
    made = [corrupt(photo, name, severity, seed=0) for severity in SEVERITIES]
    again = corrupt(photo, name, 3, seed=0)
    assert torch.equal(made[2], again)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in made)
    distances = [float((x - photo).square().mean().sqrt()) for x in made]
    assert distances[0] > 0
    assert distances[-1] > 1.05 * distances[0]
    # A stronger blur takes back some of what glass exchanges, and pixels may fit an edge by chance.
    if name not in ("glass_blur", "pixelate"):
        assert distances == sorted(distances)


@pytest.mark.parametrize("side", [(8, 8), (28, 28), (5, 9), (48, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_corrupted(side, channels, photo):
    x = torch.nn.functional.interpolate(photo[:2, :channels], side)
    for name in CORRUPTIONS:
        made = corrupt(x, name, 5, seed=1)
        assert made.shape == x.shape
        assert made.isfinite().all()
        assert not torch.equal(made, x), name


def test_noises_have_their_moments():
    x = torch.full((64, 1, 32, 32), 0.4)
    for severity in (1, 5):
        (sigma,) = CORRUPTIONS["gaussian_noise"].values[severity - 1]
        noise = make("gaussian_noise", x, severity) - x
        assert float(noise.std()) == pytest.approx(sigma, rel=0.02)
        (photons,) = CORRUPTIONS["shot_noise"].values[severity - 1]
        counts = make("shot_noise", x, severity) * photons
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
        assert float(counts.var()) == pytest.approx(0.4 * photons, rel=0.03)
        (share,) = CORRUPTIONS["impulse_noise"].values[severity - 1]
        hit = make("impulse_noise", x, severity)
        assert set(hit.unique().tolist()) == {0.0, float(x[0, 0, 0, 0]), 1.0}
        for value in (0.0, 1.0):
            assert float((hit == value).float().mean()) == pytest.approx(share / 2, rel=0.1)


def point(side: int = 33) -> torch.Tensor:
    x = torch.zeros(1, 1, side, side)
    x[..., side // 2, side // 2] = 1
    return x


def test_defocus_is_the_mean_over_a_disk_softened():
    # Of 3 x 3 pixels within 1.5: all of them.
    x = point(32)
    flat = defocused(x, 1.5, 1e-3)[0, 0]
    assert flat[15:18, 15:18].flatten().tolist() == pytest.approx([1 / 9] * 9)
    assert float(flat.sum()) == pytest.approx(1)
    plus = defocused(x, 1.0, 1e-3)[0, 0]
    assert float(plus[16, 17]) == pytest.approx(0.2)
    assert float(plus[15, 15]) == pytest.approx(0, abs=1e-6)
    # A disk of one pixel is the Gaussian of three.
    soft = defocused(x, 0.5, 0.6)[0, 0]
    side = math.exp(-1 / (2 * 0.36))
    middle = 1 / (1 + 2 * side)
    assert float(soft[16, 16]) == pytest.approx(middle**2, rel=1e-5)
    assert float(soft[16, 15]) == pytest.approx(middle**2 * side, rel=1e-5)


def test_motion_is_half_of_a_gaussian_in_its_direction():
    x = point(32)
    weights = torch.tensor([math.exp(-0.5 * (i / 2.5) ** 2) for i in range(19)])
    weights = weights / weights.sum()
    made = moved(x, 9, 2.5, torch.zeros(1))[0, 0]
    # A pixel is the mean of those to its right.
    torch.testing.assert_close(made[16, :17].flip(0), weights[:17], rtol=1e-5, atol=1e-7)
    # At 45 degrees a step ends between four pixels; every weight is still spent.
    slanted = moved(point(64), 9, 2.5, torch.tensor([math.pi / 4]))[0, 0]
    assert float(slanted.sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(slanted, slanted.T, rtol=1e-4, atol=1e-6)


def test_blurs_of_small_images_move_a_quarter_as_far():
    places = torch.arange(8.0)
    x = places.view(1, 1, 1, 8).expand(1, 1, 8, 8) / 8
    large = moved(
        torch.arange(32.0).view(1, 1, 1, 32).expand(1, 1, 32, 32) / 32, 6, 1, torch.zeros(1)
    )
    small = moved(x, 6, 1, torch.zeros(1))
    # Away from the right edge a ramp moves by the mean step, in shares of the image.
    step = float((large - torch.arange(32.0) / 32)[..., 4, 4])
    assert float((small - x)[..., 4, 2]) == pytest.approx(step, rel=1e-4)
    # A blur of a quarter of a pixel: the same variance in units of the image.
    variance = {}
    for side in (8, 32):
        made = smoothed(point(side), 0.4)[0, 0].sum(0)
        away = (torch.arange(side) - side // 2) / side
        variance[side] = float((made * away**2).sum())
    # Sharing a weight between neighbours adds to the variance, never takes from it.
    assert variance[8] > variance[32] > 0


def test_glass_exchanges_neighbours_and_loses_no_pixel():
    x = torch.arange(3 * 64.0).view(3, 1, 8, 8) / 192
    made = CORRUPTIONS["glass_blur"].make(x, drawn(), 1e-6, 1, 2)
    assert torch.equal(made.flatten(1).sort(1).values, x.flatten(1))
    assert not torch.equal(made, x)
    assert torch.equal(made[..., 0, :], x[..., 0, :])  # the first row and column stay


def test_zoom_of_a_ramp_is_its_mean_slope():
    ramp = ((torch.arange(32.0) + 0.5) / 32 - 0.5).view(1, 1, 1, 32).expand(1, 1, 32, 32)
    made = CORRUPTIONS["zoom_blur"].make(ramp, drawn(), 1.25)
    factors = [1.0, *(1 + i / 100 for i in range(26))]
    expected = ramp * sum(1 / x for x in factors) / len(factors)
    torch.testing.assert_close(made[..., 4:28], expected[..., 4:28], rtol=1e-4, atol=1e-6)


def test_fog_is_a_cloud_that_keeps_the_largest_value(photo):
    made = make("fog", photo[:, :1], 4)
    cloud = clouds(40, 28, decay=2, drawn=drawn())[:, None, :28, :28]
    largest = photo[:, :1].amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(made, (photo[:, :1] + cloud) * largest / (largest + 1))
    whole = clouds(40, 32, decay=2, drawn=drawn())
    assert (float(whole.amin()), float(whole.amax())) == (0, 1)
    # A larger decay leaves less of the fine: neighbours differ less.
    rough, smooth = (
        clouds(40, 64, decay=x, drawn=drawn()).diff(dim=1).abs().mean() for x in (1.2, 3)
    )
    assert float(smooth) < 0.5 * float(rough)


def test_brightness_is_that_of_hsv(photo):
    from colorsys import hsv_to_rgb, rgb_to_hsv

    x = photo[:2, :, :4, :4].clone()
    x[0, :, 0, 0] = 0
    made = make("brightness", x, 5)
    for image, brighter in zip(x, made, strict=True):
        for i in range(4):
            for j in range(4):
                h, s, v = rgb_to_hsv(*image[:, i, j].tolist())
                expected = hsv_to_rgb(h, s, min(1.0, v + 0.3))
                assert brighter[:, i, j].tolist() == pytest.approx(expected, abs=1e-5)


def test_contrast_keeps_the_mean_of_every_channel(photo):
    made = make("contrast", photo, 5)
    mean = photo.mean((2, 3), keepdim=True)
    torch.testing.assert_close(made - mean, 0.15 * (photo - mean), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [8, 28])
def test_pixels_are_those_of_pillow(side, photo):
    image = photo[:1, :1, :side, :side]
    for severity in SEVERITIES:
        (factor,) = CORRUPTIONS["pixelate"].values[severity - 1]
        few = (int(side * factor),) * 2
        whole = Image.fromarray(image[0, 0].numpy(), mode="F")
        small = whole.resize(few, Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        made = make("pixelate", image, severity)[0, 0].numpy()
        np.testing.assert_allclose(made, np.asarray(small), atol=1e-5)


def test_jpeg_is_that_of_pillow(photo):
    whole = np.rint(255 * photo[0].movedim(0, -1).numpy()).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file)) / 255
    made = make("jpeg", photo, 5)[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-6)
