"""Whole layers of published gated memories, by named models with their parameters mapped."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from cli.building import build
from cli.composition import compose_config
from fwlight.mixers import MultiHeadAttention
from tests.conftest import ROOT

FILE = ROOT.parent / "shared" / "reference" / "gated_layers_golden.npz"
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
K = 8


def cases() -> list[str]:
    if not FILE.is_file():
        return []
    with np.load(FILE) as file:
        return sorted({name.rpartition("/")[0] for name in file.files if name.endswith("/x")})


def load(case: str) -> dict[str, Tensor]:
    with np.load(FILE) as file:
        names = [name for name in file.files if name.startswith(f"{case}/")]
        return {name.removeprefix(f"{case}/"): torch.from_numpy(file[name]) for name in names}


def layer(*arguments: str) -> MultiHeadAttention:
    config = compose_config(["task=lm", f"size.d_head={K}", "size.d_model=24", *arguments]).config
    network = build("network", config["network"], vocab_size=5)
    return network.blocks[0].attention.double()


def gated_deltanet(golden: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Sort the rows of [q; k; v; z] and [b; a] of every key head into ours."""
    v = golden["param/norm.weight"].numel()
    values = golden["param/A_log"].numel() // 2  # value heads of one of the two key heads
    qkvz = golden[f"{kind}/in_proj_qkvz.weight"].unflatten(0, (2, -1))
    q, k, value, z = qkvz.split([K, K, values * v, values * v], dim=1)
    b, a = golden[f"{kind}/in_proj_ba.weight"].unflatten(0, (2, -1)).split(values, dim=1)
    return {
        "in_proj.weight": torch.cat([x.flatten(0, 1) for x in (q, k, value, b, a, z)]),
        "out_proj.weight": golden[f"{kind}/out_proj.weight"],
        "short_conv.weight": golden[f"{kind}/conv1d.weight"].squeeze(1),
        "memory.gates.1.A_log": golden[f"{kind}/A_log"],
        "memory.gates.1.dt_bias": golden[f"{kind}/dt_bias"],
        "memory.out_norm.weight": golden[f"{kind}/norm.weight"],
    }


def kimi(golden: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    names = ("q_proj", "k_proj", "v_proj", "b_proj", "forget_gate.f_a_proj", "g_a_proj")
    return {
        "in_proj.weight": torch.cat([golden[f"{kind}/{name}.weight"] for name in names]),
        "out_proj.weight": golden[f"{kind}/o_proj.weight"],
        "out_gate_up.weight": golden[f"{kind}/g_b_proj.weight"],
        "short_conv.weight": golden[f"{kind}/conv1d.weight"].squeeze(1),
        "memory.gates.1.up.weight": golden[f"{kind}/forget_gate.f_b_proj.weight"],
        "memory.gates.1.A_log": golden[f"{kind}/forget_gate.A_log"].flatten(),
        "memory.gates.1.dt_bias": golden[f"{kind}/forget_gate.dt_bias"],
        "memory.out_norm.weight": golden[f"{kind}/o_norm.weight"],
    }


@pytest.mark.parametrize("case", cases())
def test_gated_layer_equals_published(case: str) -> None:
    golden = load(case)
    if case.startswith("kimi"):
        mapped, made = kimi, layer("model=kda", "size.n_heads=2")
    else:
        heads = golden["param/A_log"].numel()
        mapped = gated_deltanet
        made = layer(
            "model=gated_deltanet",
            "size.n_heads=2",
            "model.expand_v=0.75",
            f"model.value_heads_per_key={heads // 2}",
        )
    made.load_state_dict(mapped(golden, "param"))
    x = golden["x"].requires_grad_()
    y, _ = made(x)
    close(y, golden["y"])
    (y * golden["weight"]).sum().backward()
    close(x.grad, golden["grad_x"])
    for name, expected in mapped(golden, "grad").items():
        close(made.get_parameter(name).grad, expected)
