"""Entropy, span and distance of softmax attention against loops, and where they are known."""

import math

import pytest
import torch

from fwlight.diagnostics import summarise
from fwlight.diagnostics.softmax import Attended, softmax_statistics

F64 = torch.float64


@pytest.mark.parametrize("causal", [True, False])
def test_softmax_equals_loops_over_queries(causal):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 3, 4, dtype=F64, generator=generator)
    k = torch.randn(2, 2, 5, 4, dtype=F64, generator=generator)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, :4] = True  # causal queries of row 0 see nothing but the last key, and only the last
    asked = torch.zeros(2, 3, dtype=torch.bool)
    asked[1, 2] = True
    found = summarise(softmax_statistics(Attended(q, k, causal, mask, asked)))
    for h in range(2):
        rows = []
        for b in range(2):
            for i in range(3):
                last = i + 2 if causal else 4
                places = [s for s in range(last + 1) if not mask[b, s]]
                if not places or asked[b, i]:
                    continue
                score = [math.exp(float(q[b, h, i] @ k[b, h, s]) / 2) for s in places]
                a = [x / sum(score) for x in score]
                entropy = -sum(x * math.log(x) for x in a)
                at = i + 2 if causal else i
                distance = sum(x * abs(at - s) for x, s in zip(a, places, strict=True))
                rows.append((entropy, math.exp(entropy), distance))
        for j, name in enumerate(("entropy", "span", "distance")):
            column = [row[j] for row in rows]
            assert float(found[f"{name}/mean"][h]) == pytest.approx(sum(column) / len(column))
            assert float(found[f"{name}/max"][h]) == pytest.approx(max(column))


def test_even_attention_spans_all_it_sees():
    q = torch.zeros(1, 1, 8, 4)
    found = summarise(softmax_statistics(Attended(q, q, causal=True)))
    assert float(found["span/max"]) == pytest.approx(8)
    assert float(found["span/mean"]) == pytest.approx(4.5)
    assert float(found["entropy/min"]) == 0
    assert float(found["distance/max"]) == pytest.approx(3.5)
