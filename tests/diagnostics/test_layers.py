"""What observers see of a network, and that looking leaves no trace."""

from functools import partial

import jaxtyping
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.diagnostics.layers import (
    Layer,
    Observer,
    layer_statistics,
    memory_layers,
    nothing,
    pooled,
    shown,
    watch_forward,
)
from fwlight.feature_maps import DPFPFeatureMap, IdentityFeatureMap
from fwlight.mixers import FastWeights, KeyValues, MultiHeadAttention
from fwlight.models import Retriever, generate
from fwlight.ops import delta_rule, sum_rule
from fwlight.types import Sequences


def make_network(*arguments):
    torch.manual_seed(0)
    sizes = ["size=tiny", "size.dropout=0.3"]
    return build("network", compose_config([*sizes, *arguments]).config["network"], vocab_size=40)


def make_tokens(b=3, t=9):
    return torch.randint(0, 40, (b, t), generator=torch.Generator().manual_seed(1))


def watch(network, *inputs):
    layers = memory_layers(network)
    return layers, watch_forward(network, layers, lambda: network(*inputs))


FWM = ("fwm_lstm", "fwm_lstm_lm", "fwm_lstm_meta_rl")
RECURRENT = ("delta_rnn", "delta_lstm", "delta_mlp", "delta_delta", "recurrent_delta", "srwm", *FWM)
BESIDES = ("softmax", "lstm", *RECURRENT)
FAST_WEIGHTS = [m for m in groups()["model"] if m not in BESIDES]
FULL = ("delta_dpfp", "delta_linear", "delta_performer", "deltanet", "fwm", "deltaproduct")


@pytest.mark.parametrize(
    ("model", "extra"),
    [(m, []) for m in FAST_WEIGHTS] + [(m, ["model.read_norm=full"]) for m in FULL],
)
def test_writes_and_reads_make_the_layers_output(model, extra):
    network = make_network(f"model={model}", *extra)
    outputs = []
    for module in network.modules():
        if isinstance(module, FastWeights):
            module.out_norm = nn.Identity()
            module.register_forward_hook(lambda _m, _i, out: outputs.append(out[0]))
    layers, watchers = watch(network, make_tokens())
    assert [layer.name for layer in layers] == ["layer0", "layer1"]
    for layer, o in zip(layers, outputs, strict=True):
        (writes,), ((q, mask),) = (
            watchers[layer.name].writes,
            watchers[layer.name].reads[0:1][0:1][0],
        )
        assert mask is None
        n = layer.memory.writes  # the last one of a token is followed by its read
        q = torch.nn.functional.pad(q[:, :, :, None], (0, 0, n - 1, 0)).flatten(2, 3)
        reads, state = layer.memory.update_rule(q, writes.k, writes.v, writes.beta, **writes.gates)
        if writes.key_sum is not None:
            # z_T is what reads after the last write are divided by.
            last = q[:, :, -1:] @ state / (q[:, :, -1:] @ writes.key_sum[..., None] + 1e-5)
            reads = torch.cat([reads[:, :, :-1], last], dim=2)
        expected = reads[:, :, -1] * layer.memory.output_scale
        if layer.memory.skip is not None:
            expected = expected + layer.memory.skip[:, None] * writes.v[:, :, -1]
        torch.testing.assert_close(expected, o[:, :, -1], rtol=1e-4, atol=1e-5)
        assert layer.memory.observer is None


@pytest.mark.parametrize("model", RECURRENT)
def test_every_fast_matrix_of_a_recurrent_core_is_shown(model):
    """What is shown written, and read with, gives what the state after it says."""
    network = make_network(f"model={model}")
    layers, watchers = watch(network, make_tokens())
    beside = {"delta_delta": ["outer"], "delta_mlp": ["fast1"]}
    beside |= {name: [] for name in (*FWM, "recurrent_delta")}
    beside["srwm"] = ["queries", "keys", "strengths"]
    names = [
        f"layer{i}{x}"
        for i in range(2)
        for x in ("", *(f"_{name}" for name in beside.get(model, ["recurrent"])))
    ]
    assert [layer.name for layer in layers] == names
    with torch.no_grad():
        _, state = network.eval().features(make_tokens())
    after = [x for x in tree_leaves(state) if isinstance(x, torch.Tensor) and x.ndim == 4]
    for layer in layers:
        (writes,), ((q, _),) = watchers[layer.name].writes, watchers[layer.name].reads[0]
        assert q.shape[2] == writes.k.shape[2] == 9
        before = writes.initial_state
        _, found = layer.memory.update_rule(
            None, writes.k, writes.v, writes.beta, initial_state=before
        )
        near = [x for x in after if x.shape == found.shape and torch.allclose(x, found, atol=1e-5)]
        assert near, layer.name


def test_looking_leaves_no_trace():
    tokens = make_tokens()
    arguments = ("model=performer", "model.feature_map.redraw=training")
    outcomes = []
    for looks in (False, True):
        network = make_network(*arguments).train()
        network.blocks[0].eval()  # modes come back one by one
        torch.manual_seed(3)
        found = [network(tokens)[0]]
        if looks:
            watch(network, tokens)
            with pytest.raises(ZeroDivisionError):
                watch_forward(network, memory_layers(network), lambda: 1 // 0)
        found += [network(tokens)[0], torch.rand(3)]
        found += network.state_dict().values()
        modes = [module.training for module in network.modules()]
        assert all(layer.memory.observer is None for layer in memory_layers(network))
        outcomes.append((found, modes))
    for one, other in zip(*(found for found, _ in outcomes), strict=True):
        assert torch.equal(one, other)
    assert outcomes[0][1] == outcomes[1][1]
    assert any(outcomes[0][1])  # the network was in training mode
    assert False in outcomes[0][1]


def test_compiled_networks_are_seen_as_written(monkeypatch):
    # What type checks wrap around functions cannot be compiled.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    network, tokens = make_network("model=delta_dpfp"), make_tokens()
    _, plain = watch(network, tokens)
    network.eval()
    compiled = torch.compile(network, backend="eager")
    before = compiled(tokens)[0]
    layers, watchers = watch(compiled, tokens)
    assert [layer.name for layer in layers] == ["layer0", "layer1"]
    for name, watcher in watchers.items():
        assert torch.equal(watcher.writes[0].k, plain[name].writes[0].k)
    network.blocks[0].compile(backend="eager")
    assert len(watch(network, tokens)[1]["layer0"].writes) == 1
    assert torch.equal(compiled(tokens)[0], before)


@pytest.mark.parametrize(
    ("rule", "read_norm"),
    [(rule, norm) for rule in (sum_rule, delta_rule) for norm in ("none", "output")]
    + [(delta_rule, "full")],
)
def test_one_query_shows_what_many_do(rule, read_norm):
    torch.manual_seed(0)
    memory = partial(
        FastWeights,
        feature_map=partial(DPFPFeatureMap, nu=1),
        update_rule=rule,
        key_norm="sum",
        read_norm=read_norm,
    )
    network = Retriever(n_keys=7, d_head=4, memory=memory)
    keys, values, queries = (torch.randint(0, 7, (3, n)) for n in (9, 9, 2))
    (layer,), one = watch(network, keys, values, queries[:, :1])
    _, many = watch(network, keys, values, queries)
    assert (layer.name, layer.n_heads) == ("layer0", 1)
    a, b = one["layer0"], many["layer0"]
    assert torch.equal(a.reads[0][0][0][:, :, 0], b.reads[0][0][0][:, :, 0])
    for name in ("projected_k", "k", "v", "beta", "key_sum"):
        x, y = getattr(a.writes[0], name), getattr(b.writes[0], name)
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y)


class Stacks(nn.Module):
    """An encoder, a decoder and cross-attention, without what surrounds them."""

    pad_id = 0

    def __init__(self, memory):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.encoder, self.decoder = (
            nn.ModuleList([nn.ModuleDict({"attention": self.layer(memory)})]) for _ in range(2)
        )
        self.decoder[0]["cross"] = self.layer(memory)

    def layer(self, memory):
        return MultiHeadAttention(8, 2, 4, memory=memory)

    def forward(self, source, inputs):
        mask = source == self.pad_id
        h, _ = self.encoder[0]["attention"](self.embedding(source), causal=False, padding_mask=mask)
        written = self.decoder[0]["cross"].write(h, padding_mask=mask)
        y, _ = self.decoder[0]["attention"](self.embedding(inputs))
        return self.decoder[0]["cross"].read(y, written)


MEMORIES = {
    "delta": partial(
        FastWeights,
        feature_map=IdentityFeatureMap,
        update_rule=delta_rule,
        key_norm="l2",
    ),
    "softmax": KeyValues,
}


@pytest.mark.parametrize("kind", MEMORIES)
def test_stacks_are_told_apart_and_padding_is_irrelevant(kind):
    torch.manual_seed(0)
    network = Stacks(MEMORIES[kind])
    source, inputs = torch.randint(1, 9, (2, 6)), torch.randint(1, 9, (2, 6))
    source[1, 4:], inputs[1, 3:] = 0, 0

    def seen(source, inputs):
        layers, watchers = watch(network, source, inputs)
        a, b = source == 0, inputs == 0
        of = {
            "encoder": Sequences(source, a, a),
            "decoder": Sequences(inputs, b, b),
            "cross": Sequences(source, a, b),
        }
        return {
            x.name: layer_statistics(x, shown(x, watchers[x.name], of=of[x.stack])) for x in layers
        }

    padded = seen(source, inputs)
    assert set(padded) == {"encoder/layer0", "decoder/layer0", "cross/layer0"}
    rows = [seen(source[:1], inputs[:1]), seen(source[1:, :4], inputs[1:, :3])]
    for name, whole in padded.items():
        for key, x in whole.sums.items():
            added = rows[0][name].sums[key] + rows[1][name].sums[key]
            torch.testing.assert_close(added, x, rtol=1e-5, atol=1e-6)


def test_tokens_and_padding_are_those_of_every_write():
    twice = FastWeights(4, feature_map=IdentityFeatureMap, update_rule=delta_rule, writes=2)
    observer = Observer()
    with torch.no_grad():
        twice.observer = observer
        twice(torch.ones(1, 1, 2, 4), *(torch.ones(1, 1, 4, 4) for _ in range(2)))
    padding = torch.tensor([[False, True]])
    of = Sequences(torch.tensor([[3, 5]]), padding, padding)
    (found,) = shown(Layer("layer0", twice, 1), observer, of=of)
    assert found.tokens.tolist() == [[3, 3, 5, 5]]
    assert found.padding_mask.tolist() == [[False, False, True, True]]
    assert found.query_mask.tolist() == padding.tolist()
    assert (found.k[:, :, :2] == 1).all()
    assert not found.k[:, :, 2:].any()


@pytest.mark.parametrize("model", groups()["model"])
def test_empty_statistics_have_every_name_and_shape(model):
    layers, watchers = watch(make_network(f"model={model}"), make_tokens())
    for layer in layers:
        found, empty = (
            layer_statistics(layer, x) for x in (shown(layer, watchers[layer.name]), nothing(layer))
        )
        for one, other in zip(found, empty, strict=True):
            assert {x: y.shape for x, y in one.items()} == {x: y.shape for x, y in other.items()}
        assert all(not x.any() for x in empty.sums.values())
        assert all((x == -torch.inf).all() for x in empty.maxima.values())


def test_long_batches_are_measured_in_parts(monkeypatch):
    layers, watchers = watch(make_network("model=deltanet"), make_tokens())
    whole = layer_statistics(layers[0], shown(layers[0], watchers["layer0"]))
    monkeypatch.setattr("fwlight.diagnostics.layers._PAIRS", 1)
    parts = layer_statistics(layers[0], shown(layers[0], watchers["layer0"]))
    for one, other in zip(whole, parts, strict=True):
        for name, x in one.items():
            torch.testing.assert_close(other[name], x, rtol=1e-9, atol=1e-9)


def test_pooled_heads_are_one_head():
    layers, watchers = watch(make_network("model=deltanet"), make_tokens())
    found = layer_statistics(layers[0], shown(layers[0], watchers["layer0"]))
    beta = watchers["layer0"].writes[0].beta.double()
    whole = pooled(found)
    assert float(whole.sums["beta/count"]) == beta.numel()
    assert float(whole.sums["beta/sum"]) == pytest.approx(float(beta.sum()), rel=1e-12)
    assert float(whole.maxima["beta/max"]) == float(beta.max())


def test_reads_of_a_state_from_elsewhere_are_left_out():
    watcher = Observer()
    watcher.read(torch.zeros(1, 1, 1, 1))
    assert watcher.reads == []


@pytest.mark.parametrize("model", ["delta_dpfp", "softmax"])
@torch.no_grad()
def test_decoding_can_be_watched(model):
    network, prompt = make_network(f"model={model}").eval(), make_tokens(b=2, t=3)
    layers = memory_layers(network)
    watcher = watch_forward(
        network, layers, lambda: generate(network, prompt, max_new_tokens=4, temperature=0.0)
    )
    state, shown = None, watcher["layer0"]
    step = prompt
    for i in range(4):
        hidden, state = network.features(step, initial_state=state)
        step = network.output(hidden[:, -1:]).argmax(-1)
        if model == "softmax":
            assert torch.equal(shown.attended[i].k, state.layers[0].k)
        elif i < 3:
            assert torch.equal(shown.writes[i + 1].initial_state, state.layers[0].weights)
