from functools import partial

import pytest
import torch

from fwlight.feature_maps import DPFPFeatureMap, FAVORFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.models import EncoderDecoder
from fwlight.ops import delta_rule, sum_rule

MEMORY = {
    "softmax": KeyValues,
    "performer": partial(
        FastWeights,
        feature_map=partial(FAVORFeatureMap, 4, 6),
        update_rule=sum_rule,
        read_norm="output",
    ),
    "delta": partial(
        FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule, key_norm="sum"
    ),
}
ATTENTION = {name: partial(MultiHeadAttention, memory=memory) for name, memory in MEMORY.items()}
ATTENTION["delta_conv"] = partial(MultiHeadAttention, memory=MEMORY["delta"], short_conv=3)
every_attention = pytest.mark.parametrize("attention", ATTENTION)
PAD = 0


def make(attention: str = "delta", **changes) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_ff": 16}
    three = dict.fromkeys(("encoder", "decoder", "cross"), ATTENTION[attention])
    options = sizes | {"pad_id": PAD, "dropout": 0.0} | three | changes
    return EncoderDecoder(**options).double().eval()


def tokens(b: int, t: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 11, (b, t), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@every_attention
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_incremental_decoding_equals_the_whole(attention: str, norm: str) -> None:
    model, source, inputs = make(attention, norm=norm), tokens(2, 7), tokens(2, 6, 2)
    source[1, 4:] = PAD
    whole = model(source, inputs)
    state, steps = model.encode(source), []
    for t in range(inputs.shape[1]):
        hidden, state = model.decode(inputs[:, t : t + 1], state)
        steps.append(model.output(hidden))
    close(torch.cat(steps, 1), whole)
    assert state.position == inputs.shape[1]


@every_attention
def test_mixed_lengths_equal_one_by_one(attention: str) -> None:
    model = make(attention)
    lengths = [(7, 3), (1, 5), (4, 1)]
    source, inputs = tokens(3, 7), tokens(3, 5, 2)
    for row, (s, _) in enumerate(lengths):
        source[row, s:] = PAD
    together = model(source, inputs)
    for row, (s, t) in enumerate(lengths):
        alone = model(source[row : row + 1, :s], inputs[row : row + 1, :t])
        close(together[row : row + 1, :t], alone)


@every_attention
def test_padding_content_changes_nothing(attention: str) -> None:
    model, source, inputs = make(attention), tokens(2, 7), tokens(2, 5, 2)
    source[:, 4:] = PAD
    before = model(source, inputs)[:, :3, 1:]
    with torch.no_grad():
        model.embedding.weight[PAD] = 100.0  # what stands at padding, in the layers' eyes
    inputs[:, 3:] = 9  # what stands behind a target's end
    close(model(source, inputs)[:, :3, 1:], before)  # the table is also the read-out


@every_attention
def test_future_target_tokens_change_nothing(attention: str) -> None:
    model, source, inputs = make(attention), tokens(2, 4), tokens(2, 6, 2)
    other = inputs.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 11
    close(model(source, other)[:, :3], model(source, inputs)[:, :3])


@pytest.mark.parametrize("attention", ["softmax", "performer", "delta"])
def test_every_source_token_reaches_every_output(attention: str) -> None:
    model, inputs = make(attention), tokens(1, 3, 2)
    for place in range(5):
        source = tokens(1, 5)
        before = model(source, inputs)
        source[0, place] = source[0, place] % 10 + 1
        assert ((model(source, inputs) - before).abs().amax(-1) > 1e-9).all()


def test_source_is_written_once_and_read_at_every_step() -> None:
    model = make("delta", n_layers=1)
    memory, writes, reads = model.decoder[0].cross.memory, [], []
    write, read = memory.write, memory.read
    memory.write = lambda k, *a, **o: writes.append(k.shape[2]) or write(k, *a, **o)
    memory.read = lambda q, state: reads.append(q.shape[2]) or read(q, state)
    state = model.encode(tokens(1, 5))
    for t in range(4):
        _, state = model.decode(tokens(1, 4, 2)[:, t : t + 1], state)
    assert (writes, reads) == ([5], [1, 1, 1, 1])


@every_attention
def test_rows_of_one_source_share_its_memory(attention: str) -> None:
    model, source, inputs = make(attention), tokens(2, 5), tokens(6, 4, 2)
    source[1, 3:] = PAD
    hidden, _ = model.decode(inputs, model.encode(source))
    repeated, _ = model.decode(inputs, model.encode(source.repeat_interleave(3, 0)))
    close(hidden, repeated)


@pytest.mark.parametrize("place", ["encoder", "decoder", "cross"])
def test_each_attention_is_chosen_apart(place: str) -> None:
    model = make("softmax", **{place: ATTENTION["delta"]})
    found = {
        "encoder": {type(block.attention.memory) for block in model.encoder},
        "decoder": {type(block.attention.memory) for block in model.decoder},
        "cross": {type(block.cross.memory) for block in model.decoder},
    }
    assert found.pop(place) == {FastWeights}
    assert set.union(*found.values()) == {KeyValues}
    source, inputs = tokens(2, 5), tokens(2, 4, 2)
    source[0, 2:] = PAD
    close(model(source, inputs)[:1], model(source[:1, :2], inputs[:1]))


def test_layers_share_no_parameter_or_buffer() -> None:
    model, seen = make("performer"), set()
    for block in [*model.encoder, *model.decoder]:
        pointers = {t.data_ptr() for t in [*block.parameters(), *block.buffers()]}
        assert not pointers & seen
        seen |= pointers


def test_state_size_counts_both_memories_and_stays() -> None:
    model = make("performer")
    for s, t in ((2, 1), (7, 5)):
        _, state = model.decode(tokens(1, t), model.encode(tokens(1, s)))
        parts = [part for layer in (*state.layers, *state.written) for part in layer[:2]]
        assert sum(x.numel() for x in parts) == model.state_size
    assert make("softmax").state_size is None
    assert make("delta", cross=ATTENTION["softmax"]).state_size is None


def test_gradients_reach_every_parameter_and_padding_gives_none() -> None:
    model, source = make("delta").train(), tokens(2, 5)
    source[:, 3:] = PAD
    inputs = tokens(2, 4, 2)
    model(source, inputs)[:, :2].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    before = model.embedding.weight.grad.clone()
    model.zero_grad()
    model(source[:, :3], inputs[:, :2]).square().sum().backward()
    close(model.embedding.weight.grad, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "sinusoidal_reversed"}, "which padding moves"),
        ({"positions": "learned"}, "positions='learned'"),
        ({"norm": "sandwich"}, "norm='sandwich'"),
        ({"n_layers": 0}, "n_layers=0"),
    ],
)
def test_bad_arguments_are_named(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_state_dict_keys_are_pinned() -> None:
    """Old checkpoints keep loading: these names may gain company, never change."""
    norms = [
        f"{name}.{kind}"
        for name in ("attention_norm", "feed_forward_norm")
        for kind in ("weight", "bias")
    ]
    common = [
        "attention.in_proj.weight",
        "attention.out_proj.weight",
        *norms,
        *(f"feed_forward.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")),
    ]
    cross = [
        "cross.in_proj.weight",
        "cross.out_proj.weight",
        "cross_norm.weight",
        "cross_norm.bias",
    ]
    expected = {"embedding.weight"}
    for i in range(2):
        expected |= {f"encoder.{i}.{name}" for name in common}
        expected |= {f"decoder.{i}.{name}" for name in [*common, *cross]}
    assert set(make("softmax").state_dict()) == set(make("delta").state_dict()) == expected
    final = {
        f"{side}_norm.{kind}" for side in ("encoder", "decoder") for kind in ("weight", "bias")
    }
    assert set(make("delta", norm="pre").state_dict()) == expected | final
