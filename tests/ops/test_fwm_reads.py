"""The FWM rule whose first write is projected too, and reads one after the other."""

import pytest
import torch

from fwlight.ops import fwm_rule, overwriting_states
from fwlight.ops.fwm_reads import fwm_reads, recurrent_fwm_reads
from tests.ops.discovery import needs_compiler

BACKENDS = ["recurrent", pytest.param("native", marks=needs_compiler)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def inputs(t: int, *, s: int = 5, r: int = 3, n: int = 3, scale: float = 1.0):
    generator = torch.Generator().manual_seed(t)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, asked = normal(2, 2, t, s), normal(2, 2, n, t, r).tanh()
    k, v, beta = normal(2, 2, t, s * r), normal(2, 2, t, s), normal(2, 2, t).sigmoid() * scale
    return [x.requires_grad_() for x in (q, asked, k, v, beta)]


@each_backend
@pytest.mark.parametrize("t", [1, 16, 35])
def test_first_write_is_projected_where_that_is_asked_for(t, backend):
    _, _, k, v, beta = inputs(t)
    start, k_1, v_1 = (x[:, :, :1] for x in (beta, k, v))
    for project_first in (True, False):
        options = {"project_first": project_first, "backend": backend}
        _, state = fwm_rule(None, k_1, v_1, start, **options)
        length = state.flatten(-2).norm(dim=-1)
        assert (length.max() <= 1 + 1e-12) == project_first
    o, state = fwm_rule(k, k, v, beta, project_first=True, backend=backend)
    expected, last = fwm_rule(k, k, v, beta, project_first=True, backend="recurrent")
    torch.testing.assert_close(o, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-9, atol=1e-11)
    d_o, d_state = torch.randn_like(o), torch.randn_like(state)
    found, wanted = (
        torch.autograd.grad((a * d_o).sum() + (b * d_state).sum(), (k, v, beta))
        for a, b in ((o, state), (expected, last))
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@each_backend
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("t", [1, 2, 17, 33])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_reads_in_parallel_are_those_step_by_step(scale, t, n, backend):
    given = inputs(t, n=n, scale=scale)
    S = 0.1 * torch.randn(2, 2, 15, 5, dtype=torch.float64)
    S.requires_grad_()
    o, last = fwm_reads(*given, initial_state=S, backend=backend)
    expected, after = recurrent_fwm_reads(*given, S)
    torch.testing.assert_close(o, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(last, after, rtol=1e-9, atol=1e-11)
    d_o, d_last = torch.randn_like(o), torch.randn_like(last)
    found, wanted = (
        torch.autograd.grad((a * d_o).sum() + (b * d_last).sum(), (*given, S))
        for a, b in ((o, last), (expected, after))
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_overwritten_states_are_read_whole():
    """Decoding lets kernels write the next state over the first, which every read needs."""
    given, parts = [x.detach() for x in inputs(9)], []
    expected, after = recurrent_fwm_reads(*given, torch.zeros(2, 2, 15, 5, dtype=torch.float64))
    state = torch.zeros(2, 2, 15, 5, dtype=torch.float64)
    with overwriting_states():
        for first, last in ((0, 6), (6, 7), (7, 9)):
            q, asked, k, v, beta = given
            q_i, *written = (x[:, :, first:last] for x in (q, k, v, beta))
            asked_i = asked[:, :, :, first:last]
            o, state = fwm_reads(q_i, asked_i, *written, initial_state=state)
            parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state, after, rtol=1e-9, atol=1e-11)


def test_emptied_memories_forget():
    q, asked, k, v, beta = inputs(20)
    empties = torch.zeros(2, 2, 20, dtype=torch.bool)
    empties[:, :, 11] = True
    o, _ = fwm_reads(q, asked, k, v, beta, empties=empties)
    part = [x[:, :, 11:] for x in (q, k, v, beta)]
    alone, _ = fwm_reads(part[0], asked[:, :, :, 11:], *part[1:])
    torch.testing.assert_close(o[:, :, 11:], alone, rtol=1e-9, atol=1e-11)
