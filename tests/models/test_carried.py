"""States that go on: cut at documents, stored in plain containers, and the gradient of reads."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap, EluFeatureMap, FAVORFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
from fwlight.models import (
    DecoderLM,
    map_state,
    pack_state,
    unpack_state,
)
from fwlight.ops import delta_rule, sum_rule

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
FULL = partial(
    FastWeights,
    feature_map=EluFeatureMap,
    update_rule=delta_rule,
    key_norm="sum",
    read_norm="full",
)
SUM_FAVOR = partial(
    FastWeights,
    feature_map=partial(FAVORFeatureMap, 4, 6),
    update_rule=sum_rule,
    read_norm="output",
)
DELTA = partial(FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule, key_norm="sum")
MEMORIES = {
    "delta": partial(MultiHeadAttention, memory=DELTA),
    "delta_conv": partial(MultiHeadAttention, memory=DELTA, short_conv=4),
    "performer": partial(MultiHeadAttention, memory=SUM_FAVOR),
    "full": partial(MultiHeadAttention, memory=FULL),
}


def make(memory: str, **changes) -> DecoderLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_ff": 16}
    options = {"dropout": 0.0, "positions": "none", "init_std": 0.3, "attention": MEMORIES[memory]}
    return DecoderLM(**sizes | options | changes).double().eval()


def tokens(b: int = 2, t: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(11, (b, t), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory", MEMORIES)
def test_documents_are_read_as_if_alone(memory):
    model, x = make(memory), tokens(3, 20)
    earlier = tokens(3, 7, seed=2)
    _, state = model.features(earlier)
    documents = torch.zeros(3, 20, dtype=torch.bool)
    documents[0, [3, 4, 15]] = True  # one of them a single token long
    documents[2, 0] = True  # a document that begins with the segment
    hidden, after = model.features(x, initial_state=state, starts=documents)
    for row in range(3):
        edges = [0, *documents[row].nonzero().flatten().tolist(), 20]
        own = map_state(lambda s, row=row: s[row : row + 1], state)
        for i, (start, end) in enumerate(pairwise(edges)):
            if start == end:
                continue
            alone = i > 0
            expected, own = model.features(
                x[row : row + 1, start:end], initial_state=None if alone else own
            )
            close(hidden[row : row + 1, start:end], expected)
        more = tokens(1, 5)
        left = map_state(lambda s, row=row: s[row : row + 1], after)
        close(
            model.features(more, initial_state=left)[0],
            model.features(more, initial_state=own)[0],
        )


def test_documents_with_positions_are_refused():
    model, starts = make("delta", positions="sinusoidal"), torch.zeros(2, 9, dtype=torch.bool)
    _, state = model.features(tokens())
    with pytest.raises(ValueError, match=r"need model\.positions=none"):
        model.features(tokens(), initial_state=state, starts=starts)


@pytest.mark.parametrize("memory", MEMORIES)
def test_packed_state_is_plain_and_comes_back(memory):
    model = make(memory)
    _, state = model.features(tokens())
    packed = pack_state(state)

    def plain(value):
        if isinstance(value, list):
            return all(plain(part) for part in value)
        return type(value) in (torch.Tensor, str, int, type(None))

    assert plain(packed)
    more = tokens(2, 3)
    again = unpack_state(packed, empty_state=model.empty_state)
    assert torch.equal(
        model.features(more, initial_state=again)[0], model.features(more, initial_state=state)[0]
    )
    for other in (
        [],
        packed[:-1],
        [x[..., :1] if isinstance(x, torch.Tensor) else x for x in packed],
    ):
        with pytest.raises(ValueError, match="not one of this model"):
            unpack_state(other, empty_state=model.empty_state)
    # As version 0.1 wrote it: parts under the names of their kinds, which count for nothing.
    nested = {"kind": "Popen", "parts": [packed[:-1], packed[-1]]}
    assert torch.equal(
        model.features(more, initial_state=unpack_state(nested, empty_state=model.empty_state))[0],
        model.features(more, initial_state=state)[0],
    )


@pytest.mark.parametrize("memory", MEMORIES)
def test_gradient_of_reads_of_a_carried_state(memory):
    """d loss / d (query projection) holds the part of what the carried state answers."""
    model = make(memory, n_layers=1)
    _, state = model.features(tokens(2, 12, seed=2))
    state = map_state(torch.Tensor.detach, state)
    x, weight = tokens(2, 3), model.blocks[0].attention.in_proj.weight
    direction = torch.zeros_like(weight)
    direction[:8] = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).double()

    def loss():
        hidden, _ = model.features(x, initial_state=state)
        return model.nll(hidden, x.flip(1)).sum()

    @torch.no_grad()
    def moved(step):
        before = weight.clone()
        weight.add_(step * direction)
        value = loss()
        weight.copy_(before)
        return value

    eps = 1e-5
    numeric = (moved(eps) - moved(-eps)) / (2 * eps)
    (gradient,) = torch.autograd.grad(loss(), weight)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-4)
    without, _ = model.features(x)
    (unread,) = torch.autograd.grad(model.nll(without, x.flip(1)).sum(), weight)
    assert not torch.allclose((unread * direction).sum(), numeric, rtol=1e-2)


@pytest.mark.parametrize("memory", MEMORIES)
def test_empty_state_is_that_of_no_token(memory):
    model = make(memory)
    expected, after = model.features(tokens())
    found, too = model.features(tokens(), initial_state=model.empty_state(2))
    close(found, expected)
    for x, y in zip(pack_state(too), pack_state(after), strict=True):
        assert x is None or torch.equal(torch.as_tensor(x), torch.as_tensor(y))
