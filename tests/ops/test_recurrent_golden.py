"""Recurrent cores against numbers of the authors' code, and what holds by construction."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fwlight.ops import delta_rule, sum_rule
from fwlight.ops.recurrent_scans import (
    SelfReference,
    SlowRecurrence,
    delta_lstm_scan,
    delta_rnn_scan,
    recurrent_delta_scan,
    self_referential_scan,
)
from tests.conftest import ROOT
from tests.ops.discovery import needs_compiler

FILE = ROOT.parent / "shared" / "reference" / "recurrent_fwp_golden.npz"
GATES = ("i", "u", "o")


def load(prefix: str) -> dict[str, Tensor]:
    with np.load(FILE) as file:
        names = [name for name in file.files if name.startswith(f"{prefix}/")]
        found = {name.removeprefix(f"{prefix}/"): torch.from_numpy(file[name]) for name in names}
    strength = re.compile(r"(grad/)?(beta[iuo]?|bx)")
    return {n: x.squeeze(-1) if strength.fullmatch(n) else x for n, x in found.items()}


def close(found: Tensor, expected: Tensor) -> None:
    largest = max(expected.abs().max().item(), 1e-300) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * largest)


def stacked(golden: dict[str, Tensor], name: str) -> Tensor:
    """Return what an LSTM's gates are given, those of one gate together."""
    return torch.cat([golden[f"{name}{gate}"] for gate in GATES], dim=1)


def run(kind: str, golden: dict[str, Tensor], **how: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs and the states after, by the names of the file."""
    x = golden
    if kind == "sum":
        o, S = sum_rule(x["q"], x["k"], x["v"], initial_state=x["S0"], **how)
        return o, {"final/S": S}
    if kind == "delta":
        o, S = delta_rule(x["q"], x["k"], x["v"], x["beta"], initial_state=x["S0"], **how)
        return o, {"final/S": S}
    if kind.startswith("delta_rnn"):
        parts = (x[name] for name in ("z", "k", "v", "beta", "R0", "h0"))
        o, R, _ = delta_rnn_scan(*parts, version=int(kind[-1]), **how)
        return o, {"final/R": R}
    if kind == "rdn":
        slow = SlowRecurrence(x["Rq"], x["Rk"], x["Rv"], x["rb"].squeeze(1))
        parts = (x[name] for name in ("qx", "kx", "vx", "bx", "S0", "h0"))
        o, S, _ = recurrent_delta_scan(*parts, slow, **how)
        return o, {"final/S": S}
    parts = [stacked(x, name) for name in ("z", "k", "v", "beta", "R0")]
    o, R, _, c = delta_lstm_scan(*parts, x["h0"], x["c0"], version=int(kind[-1]), **how)
    after = dict(zip((f"final/R_{gate}" for gate in GATES), R.chunk(3, dim=1), strict=True))
    return o, {**after, "c": c}


each_backend = pytest.mark.parametrize(
    "backend", ["recurrent", pytest.param("native", marks=needs_compiler)]
)
KINDS = (
    "sum",
    "delta",
    "delta_rnn_v1",
    "delta_rnn_v2",
    "rdn",
    *(f"delta_lstm_v{n}" for n in (1, 2, 3, 4)),
)


@each_backend
@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_core_equals_the_authors(kind, case, backend, shared_dir):
    golden = load(f"op/{kind}/{case}")
    inputs = {
        name: x.requires_grad_()
        for name, x in golden.items()
        if f"grad/{name}" in golden and "/" not in name
    }
    o, after = run(kind, golden, backend=backend)
    close(o, golden["o"])
    for name, state in after.items():
        close(state, golden["c"][:, :, -1] if name == "c" else golden[name])
    (o * golden["proj"]).sum().backward()
    for name, x in inputs.items():
        assert x.grad is not None, name
        close(x.grad, golden[f"grad/{name}"])
    assert len(inputs) >= 4


def sequences(*widths: int, b: int = 2, h: int = 2, t: int = 9, seed: int = 0) -> list[Tensor]:
    """Return numbers `[b, h, t, width]`, without the last dimension where it is 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, h, t, width) if width else (b, h, t) for width in widths]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def test_delta_rnn_without_recurrent_writes_is_what_it_is_given():
    z, k, v = sequences(4, 4, 4)
    zeros = torch.zeros(2, 2, 4, 4, dtype=z.dtype)
    h, R, _ = delta_rnn_scan(z, k, v, torch.zeros_like(z[..., 0]), zeros, zeros[..., 0])
    assert torch.equal(h, z)
    assert not R.any()


def test_recurrent_delta_net_without_slow_recurrence_is_a_delta_net_with_softmax_features():
    q, k, v, b = sequences(4, 4, 4, 0)
    nothing = torch.zeros(2, 4, 4, dtype=q.dtype)
    slow = SlowRecurrence(nothing, nothing, nothing, nothing[..., 0])
    zeros = torch.zeros(2, 2, 4, 4, dtype=q.dtype)
    y, S, _ = recurrent_delta_scan(q, k, v, b, zeros, zeros[..., 0], slow)
    o, expected = delta_rule(q.softmax(-1), k.softmax(-1), v, b.sigmoid(), backend="recurrent")
    close(y, o)
    close(S, expected)


def test_delta_lstm_with_open_gates_is_the_delta_rnn_of_its_update():
    z, k, v, b = sequences(4, 4, 4, 0, h=6)
    open_gates = z.clone()
    open_gates[:, :2] = open_gates[:, 4:] = 60.0
    zeros = torch.zeros(2, 6, 4, 4, dtype=z.dtype)
    h, *_ = delta_lstm_scan(
        open_gates, k, v, b.sigmoid(), zeros, *(zeros[:, :2, 0] for _ in range(2))
    )
    u = slice(2, 4)
    expected, _, _ = delta_rnn_scan(
        *(x[:, u] for x in (z, k, v, b.sigmoid())), zeros[:, u], zeros[:, u, 0]
    )
    close(h, expected)


def self_reference(b: int = 2, h: int = 2, d: int = 3) -> SelfReference:
    generator = torch.Generator().manual_seed(4)
    shapes = ((b, h, d, d),) * 3 + ((b, h, d, 4),)
    drawn = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return SelfReference(*(x.requires_grad_() for x in drawn))


def test_self_reference_reads_first_and_writes_all_it_reads_with():
    (x,), W = sequences(3, t=4), self_reference()
    y, after = self_referential_scan(x, W)
    close(y[:, :, 0], torch.einsum("bhd,bhdv->bhv", x[:, :, 0], W.y))
    assert not torch.equal(after.b, W.b)  # what strengths are read from is written too


@each_backend
def test_gradient_of_self_reference_is_that_of_differences(backend):
    (x,), W = sequences(3, t=4), self_reference()

    def outputs(x, *W):
        y, after = self_referential_scan(x, SelfReference(*W), backend=backend)
        return y, *after

    torch.autograd.gradcheck(outputs, (x.requires_grad_(), *W))


def halves(kind: str, *, t: int = 9, d: int = 4):
    """Return sequences, a state, and a core as a function of both."""
    draw = partial(sequences, t=t)
    if kind == "self reference":
        return (
            draw(d),
            tuple(self_reference(d=d)),
            lambda s, W, **m: _flat(
                self_referential_scan(*s, SelfReference(*W), base=empty(W), **_how(m))
            ),
        )
    n = 6 if kind == "lstm" else 2
    z, k, v, b = draw(d, d, d, 0, h=n)
    (R,) = sequences(d, t=d, h=n, seed=5)
    h, c = (x[:, :, 0] for x in sequences(d, d, t=1, seed=6))
    if kind == "rnn":
        return (
            (z, k.softmax(-1), v, b.sigmoid()),
            (R, h),
            lambda s, W, **m: _flat(delta_rnn_scan(*s, *W, **_how(m))),
        )
    if kind == "lstm":
        return (
            (z, k.softmax(-1), v, b.sigmoid()),
            (R, h, c),
            lambda s, W, **m: _flat(delta_lstm_scan(*s, *W, **_how(m))),
        )
    slow = [x[0] * d**-0.5 for x in sequences(d, d, d, t=d, seed=7)]
    slow.append(sequences(d, t=1, seed=8)[0][0, :, 0] * d**-0.5)

    def recurrent_delta(s, W, *, dtype=torch.float64, **m):
        of_dtype = SlowRecurrence(*(x.to(dtype) for x in slow))
        return _flat(recurrent_delta_scan(*s, *W, of_dtype, **m))

    return (z, k, v, b), (R, h), recurrent_delta


def _how(options: dict) -> dict:
    return {name: x for name, x in options.items() if name != "dtype"}


def empty(W) -> SelfReference:
    """What other sequences of a row start from: here zero, as the other cores do."""
    return SelfReference(*(torch.zeros_like(x[0]) for x in W))


def _flat(found):
    o, *state = found
    return o, tuple(state[0]) if isinstance(state[0], SelfReference) else tuple(state)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "rdn", "self reference"])
@torch.no_grad()
def test_two_halves_are_the_whole_and_masks_leave_what_they_mask(kind):
    given, state, core = halves(kind)
    whole, last = core(given, state)
    first, between = core([x[:, :, :5] for x in given], state)
    second, after = core([x[:, :, 5:] for x in given], between)
    close(torch.cat([first, second], dim=2), whole)
    for one, other in zip(after, last, strict=True):
        close(one, other)
    # Another sequence begins: as if from nothing.
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 5] = True
    begun, _ = core(given, state, starts=starts)
    nothing = [torch.zeros_like(x) for x in state]
    alone, _ = core([x[:, :, 5:] for x in given], nothing)
    close(begun[0, :, 5:], alone[0])
    close(begun[1], whole[1])
    # Padding in between changes nothing.
    places = torch.tensor([0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8])
    holds = torch.zeros(2, 11, dtype=torch.bool)
    holds[:, 3:5] = True
    held, kept = core([x[:, :, places] for x in given], state, holds=holds)
    close(held[:, :, ~holds[0]], whole)
    for one, other in zip(kept, last, strict=True):
        close(one, other)


@needs_compiler
@pytest.mark.parametrize("d", [1, 5, 16, 33])
@pytest.mark.parametrize("t", [1, 16, 17, 50])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "rdn", "self reference"])
def test_compiled_scan_is_the_specification(kind, t, d):
    """Any sizes, gradients of all that comes in and from all that goes out."""
    given, state, core = halves(kind, t=t, d=d)
    inputs = [x.detach().requires_grad_() for x in (*given, *state)]
    found = []
    for backend in ("native", "recurrent"):
        n = len(given)
        o, last = core(inputs[:n], inputs[n:], backend=backend)
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in (o, *last))
        found.append([o, *last, *torch.autograd.grad(loss, inputs)])
    for one, other in zip(*found, strict=True):
        close(one, other)


@needs_compiler
@pytest.mark.parametrize("kind", ["rnn", "lstm", "rdn", "self reference"])
def test_compiled_scan_in_float32_is_near_float64(kind):
    given, state, core = halves(kind, t=256, d=16)
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.detach().float().to(dtype).requires_grad_() for x in (*given, *state)]
        o, _ = core(inputs[: len(given)], inputs[len(given) :], backend="native", dtype=dtype)
        found.append([o, *torch.autograd.grad(o.square().mean(), inputs)])
    for one, other in zip(*found, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()
