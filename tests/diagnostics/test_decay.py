"""Diagnostics of memories that forget, and of erase keys, against loops over the tokens."""

import math

import pytest
import torch

from fwlight.diagnostics import Written, diagnose, finalise_diagnosis, old_values
from fwlight.diagnostics.decay import decay_statistics
from fwlight.ops import delta_rule, sum_rule

F64 = torch.float64
B, H, T, K, V = 2, 3, 7, 5, 4


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def inputs(decay: str, erase: bool):
    k, v = draw(B, H, T, K, seed=1), draw(B, H, T, V, seed=2)
    beta, start = draw(B, H, T, seed=3).sigmoid(), draw(B, H, K, V, seed=4)
    gates = {}
    if decay != "none":
        shape = (B, H, T) if decay == "scalar" else (B, H, T, K)
        gates["decay"] = -draw(*shape, seed=5).abs()
    if erase:
        gates["erase_key"] = draw(B, H, T, K, seed=6)
    return k, v, beta, start, gates


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("decay", ["none", "scalar", "channel"])
def test_what_a_gated_write_removes(decay: str, erase: bool) -> None:
    k, v, beta, S, gates = inputs(decay, erase)
    found = old_values(Written(k, v, beta, delta_rule, gates, S))
    values = diagnose(k, v, beta, rule=delta_rule, initial_state=S, gates=gates).values
    removed, changed = [], []
    for t in range(T):
        factor = gates["decay"][:, :, t].exp() if gates.get("decay") is not None else None
        if factor is not None:
            factor = factor[..., None, None] if factor.ndim == 2 else factor[..., None]
        left = S if factor is None else factor * S
        p = gates.get("erase_key", k)[:, :, t]
        old = torch.einsum("bhk,bhkv->bhv", p, left)
        torch.testing.assert_close(found[:, :, t], old)
        inserted = torch.einsum("bhk,bhv->bhkv", k[:, :, t], beta[:, :, t, None] * v[:, :, t])
        written = torch.einsum("bhk,bhv->bhkv", k[:, :, t], beta[:, :, t, None] * old)
        change = left + inserted - written - S
        removed.append((inserted - change).square().sum((-1, -2)).sqrt())
        changed.append(change.square().sum((-1, -2)).sqrt())
        S = S + change
    for name, norms in (("remove", removed), ("change", changed)):
        mean = torch.stack(norms, -1).mean((0, 2))
        torch.testing.assert_close(values[f"{name}/mean"], mean)
    state = torch.linalg.vector_norm(S, dim=(-1, -2)).mean(0)
    torch.testing.assert_close(values["frobenius/mean"], state)


def test_what_a_sum_that_decays_removes_is_no_zero() -> None:
    k, v, _, _, gates = inputs("scalar", erase=False)
    assert (diagnose(k, v, None, rule=sum_rule, gates=gates).values["remove/mean"] > 0.01).all()
    assert (diagnose(k, v, None, rule=sum_rule).values["remove/mean"] == 0).all()


def test_half_life_of_a_constant_decay() -> None:
    decay = torch.full((B, H, T), math.log(0.5) / 10, dtype=F64)
    decay[:, 1] = 0.0
    decay[:, 2, 3] = -math.inf  # a boundary is no rate
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1, 4:] = True
    decay[1, :, 4:] = -100.0
    values = finalise_diagnosis(decay_statistics(decay, padding_mask=padding), K).values
    torch.testing.assert_close(
        values["decay/half_life"], torch.tensor([10.0, math.inf, 10.0], dtype=F64)
    )
    torch.testing.assert_close(values["decay/mean"][0], torch.tensor(0.5**0.1, dtype=F64))
