"""The paper's language models as conf/ has them, against published and derived numbers."""

import math

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.models import DecoderLM
from fwlight.training import OptimizerConfig, lr_factor

WIKITEXT103 = 267_735


def shapes(*arguments: str) -> DecoderLM:
    """The network with the vocabulary of WikiText-103, without memory for its parameters."""
    config = compose_config(arguments).config
    with torch.device("meta"):
        return build("network", config["network"], vocab_size=WIKITEXT103)


# Schlag et al. 2021b, table 4: 89.8 and 89.9 million for medium; the delta rule's write strengths
# are what tells them apart.
@pytest.mark.parametrize(
    ("size", "kind", "count"),
    [
        ("paper_small", "sum", 44_018_394),
        ("paper_small", "delta", 44_034_778),
        ("paper_medium", "sum", 89_833_434),
        ("paper_medium", "delta", 89_866_202),
    ],
)
def test_published_sizes_have_the_published_parameters(size: str, kind: str, count: int):
    models = {
        "sum": ("softmax", "linear", "performer", "sum_dpfp"),
        "delta": ("delta_linear", "delta_performer", "delta_dpfp"),
    }
    for model in models[kind]:
        network = shapes(f"size={size}", f"model={model}", "model.output=adaptive")
        assert all(p.is_meta for p in network.parameters())
        assert sum(p.numel() for p in network.parameters()) == count
        assert network.output.sizes == [20_000, 20_000, 160_000, 67_735]


def cosine(n: int) -> float:
    return (1 + math.cos(math.pi * n / 500_000)) / 2


# As published, and as in the reference code, which sets the rate after an update.
@pytest.mark.parametrize(
    ("n", "paper", "reference"),
    [
        (1, 1 / 2000, 1.0),
        (2, 2 / 2000, 1 / 2000),
        (2000, 1.0, 1999 / 2000),
        (2001, cosine(2001), cosine(2000)),
        (250_000, 0.5, cosine(249_999)),
        (500_000, 0.0, cosine(499_999)),
    ],
)
def test_published_learning_rate(n: int, paper: float, reference: float):
    for schedule, factor in (("cosine", paper), ("cosine_reference", reference)):
        config = OptimizerConfig(warmup_steps=2000, schedule=schedule)
        found = lr_factor(config, n, max_steps=500_000)
        assert found == pytest.approx(factor, rel=1e-12, abs=1e-15)
