"""The paper's language models as conf/ has them, against published and derived numbers."""

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from fwlight.models import DecoderLM

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
