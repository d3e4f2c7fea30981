"""Layers of recurrent fast weight programmers against numbers of the authors' code."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fwlight.feature_maps import EluFeatureMap, SoftmaxFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
from fwlight.mixers.delta_delta import DeltaDelta
from fwlight.mixers.delta_lstm import DeltaLSTM
from fwlight.mixers.delta_mlp import DeltaMLP
from fwlight.mixers.delta_rnn import DeltaRNN
from fwlight.mixers.recurrent_delta import RecurrentDelta
from fwlight.models import DecoderLM, map_state
from fwlight.ops import delta_rule, sum_rule
from tests.conftest import ROOT

FILE = ROOT.parent / "shared" / "reference" / "recurrent_fwp_golden.npz"
PHI = {"feature_map": EluFeatureMap, "key_norm": "sum"}
SMAX = {"feature_map": SoftmaxFeatureMap, "key_norm": "none"}
DELTA_NET = partial(MultiHeadAttention, memory=partial(FastWeights, update_rule=delta_rule, **PHI))
LINEAR = partial(
    MultiHeadAttention,
    memory=partial(FastWeights, update_rule=sum_rule, feature_map=EluFeatureMap),
)
LM = {
    "delta_net": partial(
        MultiHeadAttention,
        memory=partial(FastWeights, update_rule=delta_rule, output_scale=None, **PHI),
    ),
    "delta_rnn_v1": partial(DeltaRNN, version=1, **SMAX),
    "delta_rnn_v2": partial(DeltaRNN, output_scale=None, **PHI),
    "rdn": partial(RecurrentDelta, output_scale=None),
    **{
        f"delta_lstm_v{n}": partial(
            DeltaLSTM, version=n, output_scale=1.0 if n == 1 else None, **PHI
        )
        for n in (1, 2, 3, 4)
    },
    "delta_mlp_depth1": partial(DeltaMLP, depth=1, **PHI),
    "delta_mlp_depth2": partial(DeltaMLP, depth=2, **PHI),
    "delta_delta": partial(DeltaDelta, **PHI),
    "delta_delta_base": partial(DeltaDelta, slow_base_weights=True, **PHI),
}
ALG = {
    "linear_transformer": LINEAR,
    "delta_net": DELTA_NET,
    "delta_rnn": partial(DeltaRNN, **PHI),
    "rdn": RecurrentDelta,
}


def load(prefix: str) -> dict[str, Tensor]:
    with np.load(FILE) as file:
        names = [name for name in file.files if name.startswith(f"{prefix}/")]
        return {name.removeprefix(f"{prefix}/"): torch.from_numpy(file[name]) for name in names}


def close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * max(largest, 1e-300))


def by_parts(weight: Tensor, heads: int, sizes: list[int]) -> list[Tensor]:
    """Return the parts of a head of the reference's rows, each of all heads."""
    parts = weight.unflatten(0, (heads, -1)).split(sizes, dim=1)
    return [part.flatten(0, 1) for part in parts]


def in_proj(kind: str, weight: Tensor, h: int, d: int) -> Tensor:
    """Sort the reference's rows into ours."""
    if "delta_mlp" in kind:
        return mlp_rows(weight, h, d, int(kind[-1]))
    if "lstm" in kind:
        # q k v rk rv of i, then of u, then of o; then b rb of each.
        parts = by_parts(weight, h, [15 * d, 6])
        vectors = parts[0].unflatten(0, (h, 3, 5, d)).permute(2, 0, 1, 3, 4).flatten(0, 3)
        strengths = parts[1].unflatten(0, (h, 3, 2)).permute(2, 1, 0, 3).flatten(0, 2)
        return torch.cat([vectors, strengths])
    if "delta_delta" in kind:
        return torch.cat(by_parts(weight, h, [d, d, 3 * d + 1, 1]))
    if "delta_rnn" in kind:
        return torch.cat(by_parts(weight, h, [d] * 5 + [1, 1]))
    linear = "linear" in kind
    return torch.cat(by_parts(weight, h, [d] * 3 + ([] if linear else [1])))


def mlp_rows(weight: Tensor, h: int, d: int, n: int) -> Tensor:
    """Also leave out the keys and values that the reference emits and does not use."""
    f = 4 * d
    q, written, strengths = weight.split([h * d, h * 4 * n * (d + f), 2 * n * h])
    keys, values = by_head(written, h, n, d, f)
    rows = []
    for j in range(n):
        k_a, k_b = keys[2 * j : 2 * j + 2]
        v_a, v_b = values[2 * j : 2 * j + 2]
        rows += [k_a, v_a, k_b, v_b]
    # A head's strengths stand together in the reference.
    b = strengths.unflatten(0, (h, 2 * n)).transpose(0, 1).flatten(0, 1)
    return torch.cat([q, *(row.flatten(0, 1) for row in rows), b])


def by_head(written: Tensor, h: int, n: int, d: int, f: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the first 2 n keys and values of every head, `[h, size, D]` each."""
    of_head = written.unflatten(0, (h, -1))
    keys, values = of_head.split(2 * n * (d + f), dim=1)
    return (
        list(keys[:, : n * (d + f)].split([d, f] * n, dim=1)),
        list(values[:, : n * (d + f)].split([f, d] * n, dim=1)),
    )


def parameters(kind: str, golden: dict[str, Tensor], group: str, h: int, d: int):
    """Return the reference's values of our parameters."""
    mapped = {}
    for name, x in golden.items():
        if not name.startswith(f"{group}/"):
            continue
        name = name.removeprefix(f"{group}/")
        if name in ("slow_net.weight", "qkv_net.weight", "qkvb_net.weight"):
            mapped["in_proj.weight"] = in_proj(kind, x, h, d)
        elif name in ("o_net.weight", "out_linear.weight", "out_proj.weight"):
            mapped["out_proj.weight"] = x
        elif name.startswith("R_"):
            mapped[name] = x.view(h, d, d)
        elif name == "r_b":
            mapped[name] = x.view(h, d)
        elif name.startswith("fast_net_layer_norms"):
            mapped[name.replace("fast_net_layer_norms", "norms")] = x
        elif name == "fast_net_slow_weights":
            mapped["base"] = x.view(h, d, -1)
    return mapped


def layer(made, kind: str, golden: dict[str, Tensor], h: int, d: int) -> nn.Module:
    module = made(golden["x"].shape[-1], h, d).double()
    module.load_state_dict(parameters(kind, golden, "param", h, d))
    return module


def check(module, kind, golden, out, x, norm, group="grad_param"):
    (out * golden["proj"]).sum().backward()
    close(x.grad, golden["grad_x"])
    for name, expected in parameters(kind, golden, group, *dims(golden)).items():
        if name != "base":
            close(module.get_parameter(name).grad, expected)
    close(norm.weight.grad, golden[f"{group}/layer_norm.weight"])
    close(norm.bias.grad, golden[f"{group}/layer_norm.bias"])


def dims(golden: dict[str, Tensor]) -> tuple[int, int]:
    _, h, _, d = golden["dims"].tolist()
    return h, d


def states(kind: str, state) -> dict[str, Tensor]:
    """Return what is carried, by the names of the file."""
    if kind in ("delta_net", "linear_transformer"):
        return {"S0": state.weights}
    if "delta_rnn" in kind:
        return {"S0": state.memory.weights, "R": state.R, "h": state.h}
    if kind == "rdn":
        return {"S": state.S, "h": state.y}
    if "lstm" in kind:
        named = dict(zip(("S0", "S1", "S2"), state.memory.weights.chunk(3, 1), strict=True))
        named |= dict(zip(("R_i", "R_u", "R_o"), state.R.chunk(3, 1), strict=True))
        return {**named, "h": state.h, "c": state.c}
    return {f"S{i}": memory.weights for i, memory in enumerate(state)}


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("kind", LM)
def test_layer_of_the_language_models(kind, case, shared_dir):
    golden = load(f"lm/{kind}/{case}")
    h, d = dims(golden)
    module = layer(LM[kind], kind, golden, h, d)
    width = golden["x"].shape[-1]
    norm = nn.LayerNorm(width).double()
    norm.load_state_dict({n: golden[f"param/layer_norm.{n}"] for n in ("weight", "bias")})

    def run(golden, state):
        x = golden["x"].clone().requires_grad_()
        pre = bool(load(f"lm/{kind}/{case}")["pre_lnorm"])
        u = norm(x) if pre else x
        o, after = module(u, initial_state=state)
        out = u + o if pre else norm(u + o)
        close(out, golden["out"])
        for name, found in states(kind, after).items():
            close(found, golden[f"state/{name}"])
        module.zero_grad()
        norm.zero_grad()
        check(module, kind, golden, out, x, norm)
        return after

    after = run(golden, None)
    if "base" in kind:
        exact = golden["exact_grad_param/fast_net_slow_weights"].view(h, d, -1)
        close(module.base.grad, exact)
    second = {
        name.removeprefix("carry/"): x for name, x in golden.items() if name.startswith("carry/")
    }
    if second:
        run({**second, "dims": golden["dims"]}, map_state(Tensor.detach, after))


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("kind", ALG)
def test_layer_of_the_algorithmic_tasks(kind, case, shared_dir):
    golden = load(f"alg/{kind}/{case}")
    module = layer(ALG[kind], kind, golden, *dims(golden))
    norm = nn.LayerNorm(golden["x"].shape[-1]).double()
    norm.load_state_dict({n: golden[f"param/layer_norm.{n}"] for n in ("weight", "bias")})
    x = golden["x"].clone().requires_grad_()
    o, after = module(norm(x))
    out = x + o
    close(out, golden["out"])
    for name, found in states(kind, after).items():
        close(found, golden[f"state/{name}"])
    check(module, kind, golden, out, x, norm)


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
@pytest.mark.parametrize("kind", ALG)
def test_network_of_the_algorithmic_tasks(kind, positions, shared_dir):
    golden = load(f"alg_model/{kind}/{positions}")
    made = DecoderLM(
        vocab_size=11,
        n_outputs=7,
        d_model=8,
        n_layers=2,
        n_heads=2,
        d_head=4,
        d_ff=12,
        dropout=0.0,
        attention=ALG[kind],
        norm="pre",
        positions=positions,
        scale_embedding=False,
        final_norm=False,
        init_std=None,
    ).double()

    # A dropout layer, or the positions, comes first; the reference has sine and cosine in turn.
    offset = int(positions != "none")
    turn = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]) if offset else torch.arange(8)

    def mapped(group: str) -> dict[str, Tensor]:
        values = {
            "embedding.weight": golden[f"{group}/embedding.weight"][:, turn],
            "output.weight": golden[f"{group}/out_layer.weight"][:, turn],
            "output.bias": golden[f"{group}/out_layer.bias"],
        }
        for block in range(2):
            ours = f"blocks.{block}"
            first = 2 * block + offset
            for kind_of, number in (("attention", first), ("feed_forward", first + 1)):
                theirs = {
                    name.removeprefix(f"{group}/layers.{number}."): x
                    for name, x in golden.items()
                    if name.startswith(f"{group}/layers.{number}.")
                }
                for part in ("weight", "bias"):
                    values[f"{ours}.{kind_of}_norm.{part}"] = theirs[f"layer_norm.{part}"][turn]
                if kind_of == "attention":
                    found = parameters(kind, {f"p/{n}": x for n, x in theirs.items()}, "p", 2, 4)
                    found["in_proj.weight"] = found["in_proj.weight"][:, turn]
                    found["out_proj.weight"] = found["out_proj.weight"][turn]
                    values |= {f"{ours}.attention.{name}": x for name, x in found.items()}
                else:
                    for place, name in (("0", "ff_layers.0"), ("3", "ff_layers.3")):
                        for part in ("weight", "bias"):
                            x = theirs[f"{name}.{part}"]
                            if place == "3":
                                x = x[turn]
                            elif part == "weight":
                                x = x[:, turn]
                            values[f"{ours}.feed_forward.{place}.{part}"] = x
        return values

    made.load_state_dict(mapped("param"), strict=True)
    logits, _ = made(golden["tokens"])
    close(logits, golden["logits"])
    (logits * golden["proj"]).sum().backward()
    for name, expected in mapped("grad_param").items():
        close(made.get_parameter(name).grad, expected)


def test_size_of_the_published_models():
    """Of WikiText-103; Delta MLP without the rows that influence nothing."""
    sizes = {"delta_rnn_v2": 44_575_450, "rdn": 44_135_130, "delta_lstm_v4": 47_262_426}
    sizes |= {"delta_delta": 44_575_450, "delta_mlp_depth1": 46_148_826, "delta_net": 44_034_778}
    for kind, expected in sizes.items():
        with torch.device("meta"):
            made = DecoderLM(
                vocab_size=267_735,
                d_model=128,
                n_layers=16,
                n_heads=8,
                d_head=16,
                d_ff=2048,
                dropout=0.1,
                attention=LM[kind],
                norm="pre",
                final_norm=False,
                output="adaptive",
                cutoffs=[20_000, 40_000, 200_000],
            )
        assert sum(p.numel() for p in made.parameters()) == expected, kind
