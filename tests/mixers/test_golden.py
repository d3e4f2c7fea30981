"""The authors' own numbers pass through our public layers, in float64 to 1e-9."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fwlight.feature_maps import (
    DPFPFeatureMap,
    EluFeatureMap,
    FAVORFeatureMap,
    TanhFeatureMap,
)
from fwlight.mixers import FastWeights, Gates, KeyValues, MultiHeadAttention
from fwlight.models import Retriever
from fwlight.ops import delta_rule, fwm_rule, sum_rule

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "reference"
# Attention in the reference's language model: 2 heads of 6 in a width of 12.
HEADS, D_HEAD, D_MODEL = 2, 6, 12
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)

favor = partial(FAVORFeatureMap, 6, 8, input_scale=1.0, stabilise=False)
MAPS = {
    "linear": EluFeatureMap,
    "tanh": TanhFeatureMap,
    **{f"dpfp{nu}": partial(DPFPFeatureMap, nu=nu) for nu in (1, 2, 3)},
    "performer": partial(favor, kernel_eps=1e-4, orthogonal="inputs"),
    "favor8": partial(favor, kernel_eps=0.0),
}
RULES = {"sum": sum_rule, "delta": delta_rule, "fwm": fwm_rule}


def cases(file: str, *, marker: str) -> list[str]:
    """Group names of a golden file; one placeholder that skips where the file is absent."""
    if not (GOLDEN / file).is_file():
        return [pytest.param("", marks=pytest.mark.skip("the golden file is not there"))]
    with np.load(GOLDEN / file) as data:
        names = {key.removesuffix(marker) for key in data if key.endswith(marker)}
    return sorted(name for name in names if not name.startswith(("delta_delta", "delta_mlp")))


def load(file: str, group: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as data:
        return {
            key.removeprefix(f"{group}/"): torch.from_numpy(data[key])
            for key in data
            if key.startswith(f"{group}/")
        }


def published_layer(group: str) -> MultiHeadAttention:
    """Our layer with the slots of a case such as `delta_dpfp1/attn_norm/key_sumnorm_only`."""
    layer, norm, *rest = group.split("/")
    rule, feature_map = layer.split("_")
    read_norm = "none"
    if norm == "attn_norm":
        read_norm = "full" if rest == ["with_key_denominator"] else "output"
    memory = partial(
        FastWeights,
        feature_map=MAPS[feature_map],
        update_rule=RULES[rule],
        key_norm="none" if rule == "sum" else "sum",
        read_norm=read_norm,
        output_scale=D_HEAD**-0.5,
    )
    return MultiHeadAttention(D_MODEL, HEADS, D_HEAD, memory=memory).double()


def from_published(weight: Tensor, has_beta: bool) -> Tensor:
    """Reorder rows from [q | k | v | beta] within each head to our [q; k; v; beta] over heads."""
    per_head = weight.view(HEADS, -1, weight.shape[-1])
    parts = per_head.split([D_HEAD] * 3 + [1] * has_beta, dim=1)
    return torch.cat([part.flatten(0, 1) for part in parts])


@pytest.mark.parametrize("group", cases("lm_layers_golden.npz", marker="/out"))
def test_language_model_layer_equals_published(group: str) -> None:
    golden = load("lm_layers_golden.npz", group)
    attention, norm = published_layer(group), nn.LayerNorm(D_MODEL).double()
    in_name = "param/qkvb_net.weight" if attention.memory.has_beta else "param/qkv_net.weight"
    weights = {
        "in_proj.weight": from_published(golden[in_name], attention.memory.has_beta),
        "out_proj.weight": golden["param/o_net.weight"],
    }
    attention.load_state_dict(weights, strict=False)
    if "param/proj_matrix" in golden:
        attention.memory.feature_map.projection = golden["param/proj_matrix"]
    norm.load_state_dict({n: golden[f"param/layer_norm.{n}"] for n in ("weight", "bias")})

    h = golden["h"].requires_grad_()  # [T, B, d_model]
    y, state = attention(h.transpose(0, 1))
    if attention.memory.has_beta:
        close(norm(h + y.transpose(0, 1)), golden["out"])
        overwrite_initial_state(attention, state.weights.detach())
        y, state = attention(h.transpose(0, 1))
    out = norm(h + y.transpose(0, 1))
    close(out, golden["out"])

    out.square().sum().backward()
    grad_in = from_published(golden[f"grad_{in_name}"], attention.memory.has_beta)
    close(h.grad, golden["grad_h"])
    close(attention.in_proj.weight.grad, grad_in)
    close(attention.out_proj.weight.grad, golden["grad_param/o_net.weight"])
    close(norm.weight.grad, golden["grad_param/layer_norm.weight"])
    close(norm.bias.grad, golden["grad_param/layer_norm.bias"])

    h2 = golden["carry/h2"]
    y2, state2 = attention(h2.transpose(0, 1), initial_state=state)
    close(norm(h2 + y2.transpose(0, 1)), golden["carry/out2"])
    # The file's state was updated in place by the second segment, its z was not.
    close(state2.weights, golden["carry/state"])
    if "carry/z" in golden:
        close(state.key_sum, golden["carry/z"].squeeze(2))


def overwrite_initial_state(attention: MultiHeadAttention, final: Tensor) -> None:
    """Reproduce the published gradient of the first key, which is not that of the output.

    The reference updates W in place, and the file was made with automatic differentiation through
    that: where the first key's gradient needs W_0 = 0 it found the final W. So the value retrieved
    at the first step counts as 0 in the output but as W_T k_1 in the gradient. Everything else in
    the file is exact; the exact gradient of ours is tested against the oracle in tests/ops.
    """
    rule = attention.memory.update_rule

    def published_rule(q, k, v, beta, *, initial_state=None):
        if initial_state is None:
            retrieved = k[:, :, :1] @ final
            v = torch.cat([v[:, :, :1] - (retrieved - retrieved.detach()), v[:, :, 1:]], dim=2)
        return rule(q, k, v, beta, initial_state=initial_state)

    attention.memory.update_rule = published_rule


@pytest.mark.parametrize("group", cases("synthetic_retrieval_golden.npz", marker="/out"))
@pytest.mark.parametrize("queries", [1, 2])
def test_retrieval_model_equals_published(group: str, queries: int) -> None:
    golden = load("synthetic_retrieval_golden.npz", group)
    attention, _, rule = group.split("/")[1].partition("_")
    k, q = golden["k"].requires_grad_(), golden["q"].requires_grad_()
    published_q = q
    logits = golden["beta_logit"].requires_grad_() if "beta_logit" in golden else None
    beta = None
    if attention == "softmax":
        memory = KeyValues
    else:
        beta = None if rule == "sum" else logits.sigmoid().squeeze(2)
        memory = partial(
            FastWeights,
            feature_map=MAPS[attention],
            update_rule=RULES[rule],
            key_norm="sum" if rule == "delta" else "none",
            read_norm="output" if rule == "sum" else "none",
            query_norm_eps=1e-6,
            read_eps=1e-6,
            out_norm="layernorm" if rule == "fwm" else "none",
        )
    model = Retriever(n_keys=golden["v"].shape[-1], d_head=D_HEAD, memory=memory).double()
    if "omega" in golden:
        model.memory.feature_map.projection = golden["omega"]
    values = golden["v"].argmax(-1)
    if queries == 2:  # several queries are read from the state, a single one without forming it
        q = q.expand(-1, 2, -1)
    out = model.answer(q, k, values, Gates(None if beta is None else beta[:, None]))[:, 0]
    close(out, golden["out"])

    loss = (out - golden["target"]).square().sum(-1).mean() / 2
    close(loss, golden["loss"])
    loss.backward()
    close(k.grad, golden["grad_k"])
    close(published_q.grad, golden["grad_q"])
    if "grad_beta_logit" in golden:
        close(logits.grad, golden["grad_beta_logit"])
