"""Attacks against closed forms, waves against transforms, and the table that all is in."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, nn

from fwlight.robustness.attacks import deepfool, pgd
from fwlight.robustness.measures import Row, error, from_csv, pierce, relative_errors, to_csv
from fwlight.robustness.waves import dct, hartley, low_share, spectrum


class Linear(nn.Module):
    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.map = nn.Linear(2 * 6 * 6, n)

    def forward(self, images):
        return self.map(images.flatten(1))


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear().double().requires_grad_(False)


def images(n: int = 20, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 2, 6, 6, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_deepfool_of_a_linear_classifier_goes_to_the_nearest_hyperplane(linear):
    x = images()
    changes, deceived = deepfool(linear, x)
    assert deceived.all()
    logits, W = linear(x), linear.map.weight
    for i in range(len(x)):
        own = int(logits[i].argmax())
        distances = [
            float((logits[i, own] - logits[i, k]) / (W[own] - W[k]).norm())
            for k in range(4)
            if k != own
        ]
        length = float(changes[i].norm())
        assert length == pytest.approx(1.02 * min(distances), rel=1e-3, abs=1e-5)
    assert (linear(x + changes).argmax(-1) != logits.argmax(-1)).all()


def test_deepfool_says_what_it_could_not_deceive():
    def constant(x):
        return x.flatten(1).sum(1, keepdim=True) * torch.tensor([[0.0, 0.0]]) + torch.tensor(
            [[1.0, 0.0]]
        )

    changes, deceived = deepfool(constant, images().float(), steps=3)
    assert not deceived.any()
    assert changes.isfinite().all()


def test_pgd_of_a_linear_classifier_is_the_corner_that_the_gradient_points_to():
    torch.manual_seed(0)
    network = Linear(n=2).double().requires_grad_(False)
    x = 0.5 + 0.2 * (images() - 0.5)
    labels = network(x).argmax(-1)
    away = network.map.weight[1 - labels] - network.map.weight[labels]
    corner = x + 0.05 * away.sign().view_as(x)
    sign = pgd(network, x, labels, eps=0.05, method="sign", drawn=Generator().manual_seed(0))
    torch.testing.assert_close(sign, corner)
    adam = pgd(network, x, labels, eps=0.05, method="adam")
    torch.testing.assert_close(adam, corner, rtol=0, atol=1e-4)


def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that tells three noisy patterns apart, and images of them."""
    generator = Generator().manual_seed(0)
    patterns = torch.rand(3, 1, 8, 8, generator=generator)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 1, 8, 8, generator=generator)
    x = (0.5 + 0.15 * (patterns[labels] - 0.5) + 0.03 * noise).clamp(0, 1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    return network.requires_grad_(False), x, labels


def test_undefended_network_falls_under_gradients_and_not_under_noise():
    network, x, labels = trained()
    assert error(network, x, labels) < 0.02
    attacked = {
        method: pgd(network, x, labels, eps=0.05, method=method, drawn=Generator().manual_seed(1))
        for method in ("sign", "adam", "random")
    }
    errors = {method: error(network, moved, labels) for method, moved in attacked.items()}
    for moved in attacked.values():
        assert float((moved - x).abs().max()) <= 0.05 + 1e-6
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert errors["sign"] > 0.9
    assert errors["adam"] > 0.9
    assert errors["random"] < 0.1
    with pytest.raises(ValueError, match="method=noise is none of sign, adam, random"):
        pgd(network, x, labels, eps=0.05, method="noise")


def test_cosines_are_those_of_scipy_and_keep_the_energy():
    scipy_fft = pytest.importorskip("scipy.fft")
    x = images(3)
    expected = scipy_fft.dctn(x.numpy(), type=2, norm="ortho", axes=(2, 3))
    np.testing.assert_allclose(dct(x).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(dct(x).square().sum(), x.square().sum())
    shares = spectrum(x)
    assert float(shares.sum()) == pytest.approx(1)
    flat = spectrum(torch.ones(2, 1, 6, 6))
    assert float(flat[0, 0]) == pytest.approx(1)
    assert low_share(flat) == pytest.approx(1)
    noise = torch.randn(4000, 1, 6, 6, generator=Generator().manual_seed(0))
    assert low_share(spectrum(noise)) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("sides", [(5, 6), (8, 8), (1, 4)])
def test_waves_are_orthonormal_and_of_one_frequency(sides):
    h, w = sides
    waves = hartley(h, w)
    flat = waves.reshape(h * w, -1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(h * w), rtol=0, atol=1e-5)
    energy = torch.fft.fft2(waves).abs() > 1e-4
    for i in range(h):
        for j in range(w):
            found = {tuple(place) for place in energy[i, j].nonzero().tolist()}
            assert found == {(i, j), (-i % h, -j % w)}


def test_hole_is_one_square_within_the_image():
    x = images(300).float()
    made = pierce(x, 0.25, seed=0)
    filled = (made != x).all(1)
    assert filled.sum((1, 2)).eq(9).all()
    for image in filled:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert len(rows) == len(columns) == 3
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2
    # Everywhere within, and nowhere else: the corner pixel of one place of 16.
    assert float(filled[:, 0, 0].float().mean()) == pytest.approx(1 / 16, abs=0.04)
    mean = x.mean((2, 3))
    inside = made.masked_fill(~filled[:, None], 0).sum((2, 3)) / 9
    torch.testing.assert_close(inside, mean)


def test_table_is_read_as_it_was_written_and_gives_relative_errors():
    kinds = ("gaussian_noise", "fog")
    own = [Row("corruption", kind, s, 0.25 * s) for kind in kinds for s in (1, 2)]
    base = [Row("corruption", kind, s, 0.5 * s) for kind in kinds[:1] for s in (1, 2)]
    assert from_csv(to_csv(own)) == own
    relative = relative_errors(from_csv(to_csv(own)), base)
    assert relative["gaussian_noise"] == pytest.approx(0.5)
    assert math.isnan(relative["fog"])
    with pytest.raises(ValueError, match="columns are not measure, kind, level, value"):
        from_csv("a,b\n1,2\n")
