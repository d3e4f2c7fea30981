"""Compiled dropout: which numbers go, with what frequency, and what depends on it."""

import math

import pytest
import torch
from torch.nn.functional import dropout

from fwlight.ops import native

pytestmark = pytest.mark.skipif(
    not native.can_run(torch.ones(1)), reason="there is no C++ compiler"
)
MASK = 0xFFFFFFFF
ROTATIONS = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
DIGITS_OF_PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
DIGITS_OF_PI += [0xA4093822, 0x299F31D0, 0x082EFA98, 0xEC4E6C89]


def threefry(counter: list[int], key: list[int]) -> list[int]:
    """Threefry-4x32 with 13 rounds, after the paper's section 4.2."""
    keys = [*key, key[0] ^ key[1] ^ key[2] ^ key[3] ^ 0x1BD11BDA]
    x = [(c + k) & MASK for c, k in zip(counter, keys, strict=False)]
    for d in range(13):
        for first, (i, j) in enumerate([(0, 1), (2, 3)] if d % 2 == 0 else [(0, 3), (2, 1)]):
            x[i] = (x[i] + x[j]) & MASK
            r = ROTATIONS[d % 8][first]
            x[j] = ((x[j] << r | x[j] >> (32 - r)) & MASK) ^ x[i]
        if d % 4 == 3:
            s = d // 4 + 1
            x = [(x[i] + keys[(s + i) % 5]) & MASK for i in range(4)]
            x[3] = (x[3] + s) & MASK
    return x


def run(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
    return torch.ops.fwlight.native_dropout(x, torch.tensor(seed), p)


def kept(*, p: float, count: int = 1 << 20) -> torch.Tensor:
    return native.native_dropout(torch.ones(count), p) != 0


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 4, "531c7e4f 39491ee5 2c855a92 3d6abf9a"),
        ([MASK] * 4, [MASK] * 4, "c4189358 1c9cc83a d5881c67 6a0a89e0"),
        (DIGITS_OF_PI[:4], DIGITS_OF_PI[4:], "4aa71d8f 734738c2 431fc6a8 ae6debf1"),
    ],
)
def test_reference_generator_makes_the_published_words(counter, key, words):
    assert threefry(counter, key) == [int(word, 16) for word in words.split()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_words_below_the_probability_drop(dtype, p):
    seed, count = 0x123456789ABCDEF0, 1000
    words = [threefry([n, 0, 0, 0], [seed & MASK, seed >> 32, 0, 0]) for n in range(16 * 16)]
    # Counters go in groups of 16; of a group come all first words, then all second ones ...
    ordered = torch.tensor(words).view(16, 16, 4).transpose(1, 2).flatten()[:count]
    x = torch.linspace(1, 2, count, dtype=dtype)
    expected = torch.where(ordered < p * 2**32, 0.0, x * (1 / (1 - p)))
    torch.testing.assert_close(run(x, seed, p), expected)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.99])
def test_frequency_of_dropping_is_the_probability(p):
    torch.manual_seed(0)
    mask = kept(p=p).double()
    bound = 5 * math.sqrt(p * (1 - p) / mask.numel())
    assert abs(mask.mean() - (1 - p)) < bound
    # Neither of rows nor of columns, whatever the width.
    for width in (64, 100, 1024):
        table = mask[: mask.numel() // width * width].view(-1, width)
        for way in (0, 1):
            found = (table.mean(way) - (1 - p)).abs().max()
            assert found < 6 * math.sqrt(p * (1 - p) / table.shape[way]) + 2 / table.shape[way]


def test_numbers_calls_and_seeds_are_independent():
    torch.manual_seed(0)
    masks = [kept(p=0.5).double() * 2 - 1 for _ in range(4)]
    masks += [run(torch.ones(1 << 20), seed, 0.5).double() - 1 for seed in (0, 1, 2, 1 << 32)]
    bound = 5 / math.sqrt(1 << 20)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a * b).mean()) < bound
        for lag in (1, 2, 16, 48, 64, 128, 1024):
            assert abs((a[lag:] * a[:-lag]).mean()) < bound


def test_torch_s_generator_decides():
    torch.manual_seed(3)
    first, second = kept(p=0.3), kept(p=0.3)
    torch.manual_seed(3)
    assert torch.equal(kept(p=0.3), first)
    state = torch.get_rng_state()
    assert torch.equal(kept(p=0.3), second)
    torch.set_rng_state(state)
    assert torch.equal(kept(p=0.3), second)
    torch.manual_seed(4)
    assert not torch.equal(kept(p=0.3), first)


@pytest.mark.parametrize("count", [32768, 100_003])
def test_threads_do_not_change_the_mask(count):
    x = torch.linspace(1, 2, count)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(x, 7, 0.2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (65,), (3, 5, 7)])
def test_gradients_pass_where_numbers_did(shape):
    x = torch.linspace(1, 2, math.prod(shape), dtype=torch.float64).view(shape).requires_grad_()
    y = native.native_dropout(x, 0.4)
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g * x, y)
    if x.numel() < 100:
        assert torch.autograd.gradcheck(lambda x: run(x, 1, 0.4), x)
        assert torch.autograd.gradgradcheck(lambda x: run(x, 1, 0.4), x)


def test_layouts_do_not_change_the_mask():
    x = torch.linspace(1, 2, 6 * 50 * 7).view(6, 50, 7)
    expected = run(x, 5, 0.5)
    for turned in (x.transpose(0, 2).contiguous().transpose(0, 2), x.repeat(2, 1, 1)[:6]):
        assert torch.equal(run(turned, 5, 0.5), expected)
    g = torch.ones(()).expand(6, 50, 7)
    assert torch.equal(run(g, 5, 0.5) != 0, expected != 0)


def test_infinities_and_nan_stay_unless_they_are_dropped():
    x = torch.tensor([math.inf, -math.inf, math.nan] * 50)
    y = run(x, 2, 0.5)
    gone = y == 0
    assert 40 < gone.sum() < 110
    torch.testing.assert_close(y[~gone], x[~gone], equal_nan=True)


def test_operator_passes_the_checks_of_torch():
    x = torch.rand(3, 4, 5).transpose(1, 2).requires_grad_()
    operator = torch.ops.fwlight.native_dropout.default
    torch.library.opcheck(operator, (x, torch.tensor(5), 0.1))


def test_the_frequency_is_that_of_torch_s_own_dropout():
    torch.manual_seed(0)
    x = torch.ones(1 << 18)
    ours, theirs = native.native_dropout(x, 0.25), dropout(x, 0.25)
    assert set(ours.tolist()) == set(theirs.tolist())
    assert abs(ours.mean() - theirs.mean()) < 0.01
