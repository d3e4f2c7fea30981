"""The short convolution against its formula, and what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F

from fwlight.mixers import KeyValueCache, KeyValues, MultiHeadAttention, ShortConv


def gaussian(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("t", [1, 2, 7, 64])
def test_short_conv_follows_its_formula(width: int, t: int) -> None:
    conv, x = ShortConv(5, width).double(), gaussian(2, t, 5)
    tail = gaussian(2, width - 1, 5, seed=2)
    y, new_tail = conv(x, tail=tail)
    before = torch.cat([tail, x], 1)
    for p in range(t):
        seen = before[:, p : p + width]  # the position itself is the last of them
        expected = sum(conv.weight[:, i] * seen[:, i] for i in range(width))
        torch.testing.assert_close(y[:, p], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(new_tail, before[:, t:])


def test_short_conv_of_the_last_channels_leaves_the_others_out() -> None:
    conv, x = ShortConv(5, 3).double(), gaussian(2, 6, 5)
    whole, tail = conv(x)
    part, part_tail = conv(x[..., 2:])
    torch.testing.assert_close(part, whole[..., 2:], rtol=1e-9, atol=1e-12)
    assert torch.equal(part_tail[..., 2:], tail[..., 2:])
    assert (part_tail[..., :2] == 0).all()


def test_short_conv_of_nothing_but_padding_keeps_the_tail() -> None:
    conv, tail = ShortConv(5, 4).double(), gaussian(2, 3, 5)
    padding = torch.ones(2, 6, dtype=torch.bool)
    y, kept = conv(gaussian(2, 6, 5), tail=tail, padding_mask=padding)
    assert (y == 0).all()
    assert torch.equal(kept, tail)


def test_without_short_conv_parameters_and_state_are_as_before() -> None:
    layer = MultiHeadAttention(12, 3, 4, memory=KeyValues, short_conv=0)
    assert set(layer.state_dict()) == {"in_proj.weight", "out_proj.weight"}
    _, state = layer(torch.randn(1, 3, 12))
    assert isinstance(state, KeyValueCache)
    conv = MultiHeadAttention(12, 3, 4, memory=KeyValues, short_conv=4)
    extra = set(conv.state_dict()) - set(layer.state_dict())
    assert extra == {"short_conv.weight"}


def test_convolution_is_on_q_k_and_v_and_only_v_is_activated() -> None:
    layer = MultiHeadAttention(12, 3, 4, memory=KeyValues, short_conv=2).double()
    assert layer.short_conv is not None
    x = gaussian(2, 6, 12)
    _, (cache, _) = layer(x)
    with torch.no_grad():
        qkv, _ = layer.short_conv(F.linear(x, layer.in_proj.weight))
    _, k, v = (part.view(2, 6, 3, 4).transpose(1, 2) for part in qkv.chunk(3, -1))
    torch.testing.assert_close(cache.k, k, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cache.v, F.silu(v), rtol=1e-9, atol=1e-12)


def test_forward_goes_on_after_write() -> None:
    layer = MultiHeadAttention(12, 3, 4, memory=KeyValues, short_conv=3).double()
    x = gaussian(2, 9, 12)
    _, state = layer(x[:, 5:], initial_state=layer.write(x[:, :5]))
    _, whole = layer(x)
    torch.testing.assert_close(state.memory.k, whole.memory.k, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state.tail, whole.tail, rtol=1e-9, atol=1e-12)
