"""The measured capacity against memories whose capacity is known."""

import torch

from fwlight.diagnostics import measured_capacity
from fwlight.ops import delta_rule, sum_rule


def test_measured_capacity_finds_a_known_limit_in_every_head():
    limits, calls = torch.tensor([37, 1, 64, 1000]), []

    def write_and_read(k, v):
        calls.append(k.shape[2])
        return v * (k.shape[2] <= limits)[None, :, None, None] + 0.01 * v.roll(1, -1)

    zeros = torch.zeros(4, 3)
    found = measured_capacity(write_and_read, zeros, torch.zeros(4, 3, 3), draws=1, limit=100)
    assert found.tolist() == [37, 1, 64, 100]
    assert len(calls) == len(set(calls)) < 30


def test_measured_capacity_is_where_the_rate_falls():
    d, draws = 6, 5

    def write_and_read(k, v):
        return k @ sum_rule(None, k, v)[1]

    mean = torch.tensor([[0.5] * d])
    covariance = torch.diag(torch.arange(1.0, d + 1))[None]
    found = int(measured_capacity(write_and_read, mean, covariance, draws=draws, rate=0.9))
    rates = []
    for n in (found, found + 1):
        right = 0
        for seed in range(draws):
            generator = torch.Generator().manual_seed(seed)
            rows = [torch.randn(1, d, generator=generator)[0] for _ in range(n)]
            k = mean[0] + torch.stack(rows) * covariance[0].diagonal().sqrt()
            reads = write_and_read(k[None, None], torch.eye(n)[None, None])[0, 0]
            right += int((reads.argmax(-1) == torch.arange(n)).sum())
        rates.append(right / n / draws)
    assert rates[0] >= 0.9 > rates[1]


def test_measured_capacity_of_parallel_keys_is_one():
    def write_and_read(k, v):
        k = k / k.norm(dim=-1, keepdim=True)
        return k @ delta_rule(None, k, v, torch.ones_like(k[..., 0]))[1]

    one_direction = torch.zeros(1, 4, 4)
    found = measured_capacity(write_and_read, torch.ones(1, 4), one_direction, draws=3)
    assert found.tolist() == [1]
